"""Runnable examples: ``python -m examples.classification`` compares methods."""
