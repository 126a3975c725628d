"""Everything that can go wrong, injected on the real API server while the real controller works."""
