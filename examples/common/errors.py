"""The errors that a program of ``examples`` prints and ends with, without a traceback."""


class ConfigError(ValueError):
    """A setting that makes no sense, or a run folder that is not what --resume needs."""


class DataError(Exception):
    """The data cannot be had; the message says what to do."""


class CheckpointError(Exception):
    """A checkpoint cannot be written or read; the message says which, and what to do."""


class StoppedError(Exception):
    """Stopped on request, after saving; the message says where."""
