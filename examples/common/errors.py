"""The errors that a program of ``examples`` prints and ends with, without a traceback."""


class ConfigError(ValueError):
    """A setting that makes no sense, or a run folder that is not what --resume needs."""
