"""Random histories of a whole cluster in memory against the pure core: what must hold after every step, and that rest is reached."""
