"""What is done: the doorbell, the cache, the loop, and act."""
