"""Runnable examples: ``python -m examples.train`` compares methods on an image classifier."""
