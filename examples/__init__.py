"""Runnable examples: README.md says which to copy; ``common`` is what they share."""
