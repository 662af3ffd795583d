"""Runnable examples: README.md says which to copy; ``common`` is what they share."""

from examples.common import extras

extras.name_on_error("examples")
