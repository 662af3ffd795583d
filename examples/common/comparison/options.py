"""The options of a comparison: from the command line, and in its folder."""

import argparse
import dataclasses
import json
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from examples.common import methods
from examples.common.errors import ConfigError
from examples.common.optimizers import OPTIMIZERS, SCHEDULES
from examples.common.records import write_json

BASE = "base"
_CONFIG_FILE = "config.json"
_NOT_OF_RESULTS = {"method", "seeds", "devices", "checkpoint_seconds", "output", "name", "resume"}


@dataclasses.dataclass(frozen=True)
class Options:
    """What the options of every task begin with."""

    method: tuple[str, ...] = (BASE, "sam", "arsam")
    """Methods to compare: base (the optimizer alone), any of the family, or all."""
    seeds: tuple[int, ...] = (0,)
    """A run for each. A seed sets the weights, the order of the examples and the sampling."""

    epochs: int = 10
    """Passes over the training examples."""
    batch_size: int = 32
    """Examples a step. An epoch leaves out those that fill no batch."""
    optimizer: str = "sgd"
    """The base optimizer of every method: sgd, adamw, lion or muon."""
    schedule: str = "cosine"
    """Of the learning rate, after the warm-up: cosine; step, a tenth at 1/2 and at 3/4; wsd,
    constant and then linear to 0 in the last fifth; or constant."""
    learning_rate: float = 0.1
    """Peak of the schedule."""
    warmup: float = 0.05
    """Share of all steps in which the learning rate rises linearly from 0, in [0, 1)."""
    weight_decay: float = 1e-4
    """Of sgd coupled (added to the gradient, after the sharpness-aware link), else decoupled."""
    momentum: float = 0.9
    """Of sgd, in [0, 1)."""

    rho: float = 0.1
    """Radius of the perturbation."""
    alpha: float = 0.4
    """ARSAM: how strongly the PSF's share of the gradient moves the sampling."""
    segment_length: int = 10
    """ARSAM: steps between two changes of the sampling probability."""
    reuse_steps: int = 2
    """ARSAM: steps after a sample that reuse its PSF."""
    share: float = 1 / 8
    """budgeted_sam: the share of sampled steps, in (0, 1]."""

    validation: bool = False
    """Evaluates on held-out training examples in place of the test set: to choose settings by."""
    evaluate_every: int = 0
    """Epochs between two evaluations during the training; 0: at the end alone."""
    devices: int = 0
    """Devices that share each batch; 0: one."""
    checkpoint_seconds: float = 30.0
    """Between two checkpoints; there is one on interruption and at the end, too."""
    output: Path = Path("runs")
    """Folder of all runs."""
    name: str = ""
    """Folder of this comparison in OUTPUT, if not the task's name."""
    resume: bool = False
    """Go on in OUTPUT/NAME, with its settings; --method and --seeds may change."""


def parse(options_type: type[Options], name: str, arguments: Sequence[str] | None = None) -> Any:
    """Reads the command line; of a resumed run, its settings are the defaults.

    Raises:
      ConfigError: for what makes no sense, and rather than overwrite a run.
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--name", nargs="?", default=name, const=name)
    peek.add_argument("--output", nargs="?", type=Path, default=Path("runs"), const=Path("runs"))
    peek.add_argument("--resume", action="store_true")
    first, _ = peek.parse_known_args(arguments)
    file = first.output / first.name / _CONFIG_FILE
    stored = _read(options_type, file) if first.resume and file.exists() else None
    defaults = stored or dataclasses.replace(options_type(), name=name)
    options = tyro.cli(
        options_type, args=arguments, default=defaults, prog=f"python -m examples.{name}"
    )
    if "all" in options.method:
        options = dataclasses.replace(options, method=(BASE, *methods.METHODS))
    check(options)
    _check_folder(options, stored)
    return options


def check(options: Options) -> None:
    """Raises ConfigError for values out of range."""

    def require(is_met: bool, message: str) -> None:
        if not is_met:
            raise ConfigError(message)

    known = (BASE, *methods.METHODS)
    unknown = [method for method in options.method if method not in known]
    require(
        not unknown, f"--method: there is no {', '.join(unknown)}; there are {', '.join(known)}"
    )
    for name, values in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
        value = getattr(options, name)
        require(value in values, f"--{name}: there is no {value}; there are {', '.join(values)}")
    for name in ("method", "seeds"):
        values = getattr(options, name)
        require(len(values) > 0, f"--{name} needs at least one value")
        require(len(set(values)) == len(values), f"--{name} names one twice")
    require(all(0 <= seed < 2**32 for seed in options.seeds), "--seeds must be in [0, 2**32)")
    for name in ("epochs", "batch_size", "segment_length"):
        require(getattr(options, name) >= 1, f"--{_flag(name)} must be at least 1")
    for name in (
        *("learning_rate", "weight_decay", "rho", "alpha", "reuse_steps"),
        *("evaluate_every", "devices", "checkpoint_seconds"),
    ):
        require(getattr(options, name) >= 0, f"--{_flag(name)} must not be negative")
    for name in ("warmup", "momentum"):
        require(0 <= getattr(options, name) < 1, f"--{name} must be in [0, 1)")
    require(0 < options.share <= 1, "--share must be in (0, 1]")
    require("/" not in options.name and options.name not in ("", ".", ".."), "--name is one folder")


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _read(options_type: type[Options], file: Path) -> Options:
    """The settings of a run."""
    try:
        values = json.loads(file.read_text())
        kinds = typing.get_type_hints(options_type)
        for name, kind in kinds.items():
            if typing.get_origin(kind) is tuple:
                values[name] = tuple(values[name])
            elif Path in (kind, *typing.get_args(kind)) and values[name] is not None:
                values[name] = Path(values[name])
        return options_type(**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{file} does not hold the settings of a run: {error!r}") from error


def _check_folder(options: Options, stored: Options | None) -> None:
    folder = options.output / options.name
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ConfigError(f"--output: {path} is not a folder")
    if not options.resume:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(
                f"{folder} is not empty. Go on with its runs (or show finished ones again) with"
                " --resume, choose another --name, or delete the folder"
            )
        return
    if stored is None:
        raise ConfigError(f"there is no run to resume in {folder}")
    before, now = dataclasses.asdict(stored), dataclasses.asdict(options)
    changed = [
        f"--{_flag(key)} {before[key]} → {now[key]}"
        for key in now
        if key not in _NOT_OF_RESULTS and before[key] != now[key]
    ]
    if changed:
        raise ConfigError(f"a resumed run keeps its settings, but {', '.join(changed)}")


def write(options: Options) -> None:
    """Writes them to the run's folder; what it trained before is still of this comparison."""
    file = options.output / options.name / _CONFIG_FILE
    own = dataclasses.asdict(dataclasses.replace(options, resume=False))
    if options.resume:
        stored = json.loads(file.read_text())
        for key in ("method", "seeds"):
            own[key] = list(dict.fromkeys((*stored[key], *own[key])))
    write_json(file, own)
