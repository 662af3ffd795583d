"""Studies of what the methods cost and gain: README.md says what each found."""

from examples.common import extras

extras.name_on_error("benchmarks")
