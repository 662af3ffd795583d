"""What the settings of any program share: their checks, and the file of a run's folder with them.

Settings are a frozen dataclass with ``method``, ``seeds``, ``share``, ``output``, ``resume`` and
``folder`` among its attributes.
"""

import dataclasses
import json
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from examples.common.errors import ConfigError
from examples.common.records import write_json

CONFIG_FILE = "config.json"


def flag(name: str) -> str:
    """As it is written on the command line, without the dashes before it."""
    return name.replace("_", "-")


def require(is_met: bool, message: str) -> None:
    """Raises ConfigError with the message if it is not met."""
    if not is_met:
        raise ConfigError(message)


def require_known(option: str, values: Iterable[str], known: Iterable[str]) -> None:
    """Raises ConfigError for a value that is none of those known."""
    unknown = [value for value in values if value not in known]
    require(
        not unknown,
        f"--{option}: there is no {', '.join(unknown)}; there are {', '.join(known)}",
    )


def check_numbers(
    config: Any,
    *,
    shares: Iterable[str],
    positive: Iterable[str],
    not_negative: Iterable[str],
) -> None:
    """Raises ConfigError for numbers out of range.

    Args:
      shares: names of those in [0, 1); ``share`` itself is in (0, 1].
      positive: of those that are at least 1.
      not_negative: of those that are at least 0.
    """
    for name in ("method", "seeds"):
        values = getattr(config, name)
        require(len(values) > 0, f"--{name} needs at least one value")
        require(len(set(values)) == len(values), f"--{name} names one twice")
    require(all(0 <= seed < 2**32 for seed in config.seeds), "--seeds must be in [0, 2**32)")
    for name in shares:
        require(0 <= getattr(config, name) < 1, f"--{flag(name)} must be in [0, 1)")
    for name in positive:
        require(getattr(config, name) >= 1, f"--{flag(name)} must be at least 1")
    for name in not_negative:
        require(getattr(config, name) >= 0, f"--{flag(name)} must not be negative")
    require(0 < config.share <= 1, "--share must be in (0, 1]")


def to_dict(config: Any) -> dict[str, Any]:
    """The settings as JSON can hold them."""
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in dataclasses.asdict(config).items()
    }


def read(kind: type, file: Path) -> Any:
    """The settings of a run, a ``kind``, from its CONFIG_FILE.

    Raises:
      ConfigError: if the file is damaged, or of another version of this program.
    """
    try:
        values = json.loads(file.read_text())
        for name, hint in typing.get_type_hints(kind).items():
            if typing.get_origin(hint) is tuple:
                values[name] = tuple(values[name])
            elif Path in (hint, *typing.get_args(hint)):
                values[name] = None if values[name] is None else Path(values[name])
        return kind(**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{file} does not hold the settings of a run: {error!r}") from error


def check_folder(config: Any, stored: dict[str, Any] | None, given: dict[str, Any]) -> None:
    """Raises ConfigError rather than overwrite a run, or resume what is none or is another.

    Args:
      stored: the settings that decide results, of the run in the folder; None if there is none.
      given: the same of this one.
    """
    folder = config.folder
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ConfigError(f"--output: {path} is not a folder")
    if config.resume:
        if stored is None:
            raise ConfigError(f"there is no run to resume in {folder}")
        changed = [
            f"--{flag(key)} {stored[key]} → {given[key]}"
            for key in given
            if key in stored and stored[key] != given[key]
        ]
        if changed:
            raise ConfigError(f"a resumed run keeps its settings, but {', '.join(changed)}")
    elif folder.exists() and any(path.suffix != ".tmp" for path in folder.iterdir()):
        raise ConfigError(
            f"{folder} is not empty. Go on with its runs (or show finished ones again) with"
            " --resume, choose another --name, or delete the folder"
        )


def resume_arguments(config: Any) -> list[str]:
    """The arguments with which to go on with the runs in the folder."""
    arguments = ["--resume", "--name", config.folder.name]
    return (
        arguments if config.output == Path("runs") else [*arguments, "--output", str(config.output)]
    )


def write(config: Any) -> None:
    """Writes the settings to the run's folder; of a resumed run, with what else it is to train."""
    file = config.folder / CONFIG_FILE
    if config.resume:
        stored = read(type(config), file)
        config = dataclasses.replace(
            config,
            method=tuple(dict.fromkeys((*stored.method, *config.method))),
            seeds=tuple(dict.fromkeys((*stored.seeds, *config.seeds))),
        )
    write_json(file, to_dict(config))
