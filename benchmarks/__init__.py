"""Benchmarks of accuracy, of the paper's results and of cost. README.md has the commands."""

from examples.common import extras

extras.name_on_error("benchmarks")
