"""What happens to placements on a cluster: the real API server and controller, simulated GPUs and engines."""
