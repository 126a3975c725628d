"""Tests, and what they stand on: a real control plane (cluster), simulated GPUs (sim), a real kubelet (node)."""
