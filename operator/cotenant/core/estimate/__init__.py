"""What one engine needs of each GPU before anything starts: config -> weights, KV cache, activations; and the advice that follows."""
