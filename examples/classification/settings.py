"""The settings of a run: from the command line, from a config, and in the run's folder."""

import argparse
import dataclasses
import difflib
import runpy
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from examples.classification import methods, paper
from examples.classification.checks import check
from examples.classification.config import (
    NOT_OF_RESULTS,
    Config,
    Published,
    folder_name,
)
from examples.common import settings
from examples.common.errors import ConfigError
from examples.common.settings import CONFIG_FILE, read, to_dict

PROG = "python -m examples.classification"
CONFIGS = Path(__file__).with_name("configs")


def parse(arguments: Sequence[str] | None = None) -> Config:
    """Reads the command line. Defaults come from a config file, or the resumed run.

    Raises:
      ConfigError: for a config file that there is not or that is none, and for bad values.
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--config", "--dataset", "--name"):  # one without a value is for tyro to report
        peek.add_argument(option, nargs="?", default="", const="")
    peek.add_argument("--output", nargs="?", type=Path, default=Path("runs"), const=Path("runs"))
    peek.add_argument("--resume", action="store_true")
    first, _ = peek.parse_known_args(arguments)
    file = first.output / folder_name(first.name, first.config, first.dataset) / CONFIG_FILE
    if first.resume and file.exists():
        defaults = dataclasses.replace(read(Config, file), resume=False)
        if first.config not in ("", defaults.config):
            raise ConfigError(f"{file.parent} is not of --config {first.config}; leave that out")
    elif first.config:
        defaults = dataclasses.replace(_load(first.config)["config"], config=first.config)
    elif (CONFIGS / f"{first.dataset or Config.dataset}.py").exists():
        defaults = _load(first.dataset or Config.dataset)["config"]
    else:
        defaults = Config(dataset=first.dataset)
    config = tyro.cli(Config, args=arguments, default=defaults, prog=PROG)
    if "all" in config.method:
        config = dataclasses.replace(config, method=tuple(methods.METHODS))
    check(config)
    return config


def names() -> list[str]:
    """Of all configs: the files in ``configs`` and the rows of the paper's tables."""
    files = sorted(path.stem for path in CONFIGS.glob("[!_]*.py"))
    return [*files, *paper.rows()]


def published(config: Config) -> dict[str, Published]:
    """What a paper reports for the methods of this config; nothing if that is no config's."""
    return _load(config.config).get("published", {}) if config.config else {}


def listing() -> str:
    """All configs, one a line: what it is, its methods, and what a paper reports."""
    lines = []
    for name in names():
        values = _load(name)
        config, figures = values["config"], values.get("published", {})
        what = f"{config.dataset}, {config.model}, {' '.join(config.method)}"
        if config.label_noise:
            what += f", {100 * config.label_noise:g} % label noise"
        lines.append(f"{name:45} {what}" + "".join(f": {_text(f)}" for f in figures.values()))
    return "\n".join(lines)


def _text(figures: Published) -> str:
    std = "" if figures.std is None else f" ± {figures.std:g}"
    sampled = "" if figures.percent_sam is None else f", {figures.percent_sam:g} %SAM"
    speed = "" if figures.speed_up is None else f", {figures.speed_up:g} × SAM's speed"
    return f"{figures.accuracy:g}{std} %{sampled}{speed}"


def _load(name: str) -> dict[str, Any]:
    """The values in a config file, or of a row of a table."""
    if name in paper.rows():
        row = paper.rows()[name]
        return {"config": row.config, "published": {row.config.method[0]: row.published}}
    path = Path(name) if name.endswith(".py") else CONFIGS / f"{name}.py"
    if not path.is_file():
        near = difflib.get_close_matches(name, names(), n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else " --list shows all."
        raise ConfigError(f"there is no config {name!r}.{hint}")
    try:
        values = runpy.run_path(str(path))
    except Exception as error:
        raise ConfigError(f"{path} cannot be run: {error!r}") from error
    config = values.get("config")
    if not isinstance(config, Config):
        raise ConfigError(f"{path} does not define config, a Config of examples.classification")
    figures = values.get("published", {})
    if not (isinstance(figures, dict) and all(isinstance(f, Published) for f in figures.values())):
        raise ConfigError(
            f"{path}: published must be a dict of Published by method, not {figures!r}"
        )
    for field, kind in typing.get_type_hints(Config).items():
        value = getattr(config, field)
        if not _is_of_kind(value, kind):
            raise ConfigError(f"{path}: {field} must be {kind}, not {value!r}")
    return values


def _is_of_kind(value: Any, kind: Any) -> bool:
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_of_kind(v, arguments[0]) for v in value)
    if arguments:  # of a union
        return any(_is_of_kind(value, argument) for argument in arguments)
    if kind is float and isinstance(value, int):
        return True
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def check_folder(config: Config) -> None:
    """Raises ConfigError rather than overwrite a run, or resume what is none or is another."""
    file = config.folder / CONFIG_FILE
    is_run = config.resume and file.exists()
    stored = _results_settings(read(Config, file)) if is_run else None
    settings.check_folder(config, stored, _results_settings(config))


def _results_settings(config: Config) -> dict[str, Any]:
    ignored = (*NOT_OF_RESULTS, "method", *(["seeds"] if config.seeds_at_once == 1 else []))
    values = to_dict(config) | {"warmup_epochs": config.warmup}
    values["input_workers"] = bool(config.input_workers)  # not how many
    return {key: value for key, value in values.items() if key not in ignored}
