"""The settings of a run: checks that all tasks share, and the file that keeps the settings."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from examples.common.errors import ConfigError
from examples.common.records import write_json

CONFIG_FILE = "config.json"
_LARGEST = float(np.finfo(np.float32).max)


def flag(name: str) -> str:
    """The name of a setting on the command line, without the dashes before it."""
    return name.replace("_", "-")


def require(is_met: bool, message: str) -> None:
    """Raises ConfigError with the message if the condition is not met."""
    if not is_met:
        raise ConfigError(message)


def require_known(option: str, values: Iterable[str], known: Iterable[str]) -> None:
    """Raises ConfigError if a value is not one of those known."""
    unknown = [value for value in values if value not in known]
    require(
        not unknown,
        f"--{option}: there is no {', '.join(unknown)}; there are {', '.join(known)}",
    )


def check_finite(settings: Any) -> None:
    """Raises ConfigError for numbers that float32 or int32 cannot hold, infinity and NaN too."""
    for field in dataclasses.fields(settings):
        values = getattr(settings, field.name)
        for value in values if isinstance(values, tuple) else (values,):
            name = f"--{flag(field.name)}"
            if isinstance(value, float):
                is_finite = math.isfinite(value) and abs(value) <= _LARGEST
                require(is_finite, f"{name} must be a finite float32 number, not {value}")
            if isinstance(value, int) and field.name != "seeds":
                require(abs(value) < 2**31, f"{name} must be less than 2**31, not {value}")


def check_numbers(
    settings: Any,
    *,
    shares: Iterable[str] = (),
    positive: Iterable[str] = (),
    not_negative: Iterable[str] = (),
) -> None:
    """Raises ConfigError for numbers out of range.

    Args:
      shares: the names of the settings in [0, 1).
      positive: the names of those that are at least 1.
      not_negative: the names of those that are at least 0.
    """
    for name in shares:
        value = getattr(settings, name)
        require(0 <= value < 1, f"--{flag(name)} must be in [0, 1), not {value}")
    for name in positive:
        value = getattr(settings, name)
        require(value >= 1, f"--{flag(name)} must be at least 1, not {value}")
    for name in not_negative:
        value = getattr(settings, name)
        require(value >= 0, f"--{flag(name)} must not be negative, not {value}")


def to_dict(settings: Any) -> dict[str, Any]:
    """The settings as JSON holds them."""
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in dataclasses.asdict(settings).items()
    }


def read(kind: type, file: Path) -> Any:
    """The settings of a run, an instance of the dataclass ``kind``, from its CONFIG_FILE.

    Raises:
      ConfigError: if the file is damaged, is of another version of the program, or holds a value
        of the wrong type.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read as the settings of a run: {error}") from error
    names = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(values, dict) or values.keys() != names:
        found = values.keys() if isinstance(values, dict) else set()
        raise ConfigError(
            f"{file} does not hold the settings of this program. Missing:"
            f" {', '.join(sorted(names - found)) or 'none'}; unknown:"
            f" {', '.join(sorted(found - names)) or 'none'}"
        )
    hints = typing.get_type_hints(kind)
    for name in names:
        try:
            values[name] = _converted(values[name], hints[name])
        except TypeError:
            expected = getattr(hints[name], "__name__", None) or str(hints[name])
            raise ConfigError(
                f"{file}: {name} must be of the type {expected}, not {values[name]!r}"
            ) from None
    return kind(**values)


def _converted(value: Any, kind: Any) -> Any:
    """The JSON value as the type of a setting; TypeError if it is of another type."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(value):
            raise TypeError
        return tuple(_converted(item, own) for item, own in zip(value, kinds, strict=True))
    if typing.get_origin(kind) in (types.UnionType, typing.Union):  # of None and another type
        (other,) = (argument for argument in arguments if argument is not types.NoneType)
        return None if value is None else _converted(value, other)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) is int:
        return value
    if type(value) is not kind:
        raise TypeError
    return value


def resume_arguments(settings: Any) -> list[str]:
    """The arguments that continue the runs in the folder."""
    arguments = ["--resume", "--name", settings.folder.name]
    if settings.output != Path("runs"):
        arguments += ["--output", str(settings.output)]
    if settings.processes:
        arguments += ["--processes", settings.processes]
    return arguments


def write(settings: Any) -> None:
    """Writes the settings to the folder of the run.

    The file of a resumed run gains the methods and seeds that are trained now.
    """
    file = settings.folder / CONFIG_FILE
    if settings.resume:
        stored = read(type(settings), file)
        settings = dataclasses.replace(
            settings,
            method=tuple(dict.fromkeys((*stored.method, *settings.method))),
            seeds=tuple(dict.fromkeys((*stored.seeds, *settings.seeds))),
        )
    write_json(file, to_dict(settings))
