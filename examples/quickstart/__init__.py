"""Whole training programs to copy, of at most 80 lines each."""
