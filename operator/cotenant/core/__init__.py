"""What is decided. Pure: same arguments, same answer; import-linter keeps I/O, clocks and chance out."""
