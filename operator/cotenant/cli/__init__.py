"""Views of the same core, for people."""
