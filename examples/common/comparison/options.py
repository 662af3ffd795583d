"""The options of a comparison: from the command line, and in its folder."""

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from examples.common import methods, settings
from examples.common.optimizers import OPTIMIZERS, SCHEDULES

BASE = "base"
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
    """Of the learning rate, after the warm-up: cosine; step, see --decay-at; wsd, constant and
    then linear to 0 in the last fifth; poly, to 0 as (1 - t)^0.9; or constant."""
    decay_at: tuple[float, ...] = (1 / 2, 3 / 4)
    """Of step: shares of all steps, rising, from each of which on it is a tenth of what it was."""
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
    rho_of_weights: float = 0.0
    """Not 0: ρ is this part of the length of the weights at the start, and --rho is not read (but
    by gam, for its second radius). 0.009 suits small networks for which none was tuned."""
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

    @property
    def folder(self) -> Path:
        return self.output / self.name

    def impossible(self) -> dict[str, str]:
        """Methods that cannot run with these settings, and why; ``all`` leaves them out."""
        return {}


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
    file = first.output / first.name / settings.CONFIG_FILE
    stored = settings.read(options_type, file) if first.resume and file.exists() else None
    defaults = stored or dataclasses.replace(options_type(), name=name)
    options = tyro.cli(
        options_type, args=arguments, default=defaults, prog=f"python -m examples.{name}"
    )
    if "all" in options.method:
        options = dataclasses.replace(options, method=_all(options))
    check(options)
    settings.check_folder(
        options, None if stored is None else _results_settings(stored), _results_settings(options)
    )
    return options


def _all(options: Options) -> tuple[str, ...]:
    """All methods, but for those that cannot run, unless they are named besides."""
    left_out = {m: why for m, why in options.impossible().items() if m not in options.method}
    for method, why in left_out.items():
        print(f"--method all leaves out {method}: {why}")
    return tuple(m for m in (BASE, *methods.METHODS) if m not in left_out)


def check(options: Options) -> None:
    """Raises ConfigError for values out of range."""
    settings.require_known("method", options.method, (BASE, *methods.METHODS))
    settings.require_known("optimizer", (options.optimizer,), OPTIMIZERS)
    settings.require_known("schedule", (options.schedule,), SCHEDULES)
    settings.require(
        all(low < high for low, high in itertools.pairwise((0, *options.decay_at, 1))),
        f"--decay-at must rise within (0, 1), not {' '.join(map(str, options.decay_at))}",
    )
    settings.check_numbers(
        options,
        shares=("warmup", "momentum"),
        positive=("epochs", "batch_size", "segment_length"),
        not_negative=(
            *("learning_rate", "weight_decay", "rho", "rho_of_weights", "alpha", "reuse_steps"),
            *("evaluate_every", "devices", "checkpoint_seconds"),
        ),
    )
    settings.require(
        options.optimizer == "sgd" or options.momentum == Options.momentum,
        f"--momentum is for --optimizer sgd; {options.optimizer} has averages of its own",
    )
    is_folder = "/" not in options.name and options.name not in ("", ".", "..")
    settings.require(is_folder, "--name is one folder name")


def _results_settings(options: Options) -> dict[str, Any]:
    values = settings.to_dict(options)
    return {key: value for key, value in values.items() if key not in _NOT_OF_RESULTS}
