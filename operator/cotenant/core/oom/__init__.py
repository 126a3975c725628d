"""What a dead engine died of, by its log and its GPUs, and the ladder of remedies."""
