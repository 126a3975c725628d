"""Cotenant lets several LLMs live on one NVIDIA GPU."""
