"""The settings of a run: checks that all tasks share, and the file that keeps the settings."""

import dataclasses
import json
import math
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typeguard

from examples.common.checkpoints import write_json
from examples.common.errors import ConfigError
from examples.common.reading import reading

CONFIG_FILE = "config.json"


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


def check_all_numbers(settings: Any) -> None:
    """Raises ConfigError for infinity, NaN and negative numbers."""
    for name, values in vars(settings).items():
        for value in values if isinstance(values, tuple) else (values,):
            is_valid = not isinstance(value, float | int) or (math.isfinite(value) and value >= 0)
            require(is_valid, f"--{flag(name)} must be finite and not negative, not {value}")


def check_numbers(
    settings: Any,
    *,
    shares: Iterable[str] = (),
    positive: Iterable[str] = (),
    not_negative: Iterable[str] = (),
) -> None:
    """Raises ConfigError unless shares are in [0, 1), and others at least 1 or at least 0."""
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
    return json.loads(json.dumps(dataclasses.asdict(settings), default=str))


def read(kind: type, file: Path) -> Any:
    """The settings of a run, an instance of the dataclass ``kind``, from its CONFIG_FILE.

    Raises:
      DataError: if the file is damaged, is of another version of the program, or holds a value
        of the wrong type.
    """
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    with reading(file, "the settings of a run", "Choose another --name to start again."):
        values = json.loads(file.read_text(encoding="utf-8"))
        if set(values) != set(names):
            raise ValueError(f"settings that differ: {', '.join(sorted(set(values) ^ set(names)))}")
        for name in names:
            value, kinds = values[name], {hints[name], *typing.get_args(hints[name])}
            if isinstance(value, list):
                values[name] = tuple(value)
            elif isinstance(value, str) and Path in kinds:
                values[name] = Path(value)
            check = typeguard.CollectionCheckStrategy.ALL_ITEMS
            try:
                typeguard.check_type(values[name], hints[name], collection_check_strategy=check)
            except typeguard.TypeCheckError as error:
                raise TypeError(f"{name}: {error}") from error
        return kind(**values)


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
