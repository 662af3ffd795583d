"""Benchmarks of accuracy, of the paper's results and of cost. README.md has the commands."""
