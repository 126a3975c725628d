"""What is seen: the GPUs of one node, and whose processes are on them."""
