"""Errors that a program of ``examples`` prints without a traceback before it exits."""


class ConfigError(ValueError):
    """A setting is invalid, or a run folder is not what ``--resume`` needs."""


class DataError(Exception):
    """The data cannot be loaded. The message says what to do."""


class CheckpointError(Exception):
    """A checkpoint cannot be written or read. The message names it and says what to do."""


class StoppedError(Exception):
    """The run was stopped on request and is saved. The message says at which step."""
