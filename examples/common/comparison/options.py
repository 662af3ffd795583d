"""The options of a comparison: read from the command line, or from the folder of a run."""

import dataclasses
import itertools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro

from examples.common import settings
from examples.common.errors import ConfigError
from examples.common.methods import METHODS
from examples.common.optimizers import OPTIMIZERS

BASE = "base"
# Settings that do not change the results of a run, or only their rounding.
_NOT_OF_RESULTS = {
    "method",
    "seeds",
    "devices",
    "processes",
    "input_threads",
    "checkpoint_seconds",
    "tensorboard",
    "output",
    "name",
    "resume",
    "smoke",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """The options that every task has."""

    method: tuple[str, ...] = (BASE, "sam", "arsam")
    """Methods to compare: base (the optimizer alone), any named method of the library, or all."""
    seeds: tuple[int, ...] = (0,)
    """One run for each. A seed sets the weights, the order of the examples and the sampling."""

    epochs: int = 10
    """Passes over the training examples."""
    batch_size: int = 32
    """Examples per step. An epoch drops an incomplete last batch."""
    optimizer: str = "sgd"
    """The base optimizer of every method: sgd or adamw."""
    schedule: Literal["cosine", "step", "poly", "constant"] = "cosine"
    """The learning rate after the warm-up. step: see --decay-at; poly: to 0 as (1 - t)^0.9."""
    decay_at: tuple[float, ...] = (1 / 2, 3 / 4)
    """For the schedule step: rising fractions of the run, at each of which the learning rate is
    divided by 10."""
    learning_rate: float = 0.1
    """Peak of the schedule."""
    warmup: float = 0.05
    """Fraction of the run in which the learning rate rises linearly from 0, in [0, 1)."""
    weight_decay: float = 1e-4
    """For sgd coupled: added to the gradient after the sharpness-aware method. Otherwise
    decoupled."""
    momentum: float = 0.9
    """Momentum of sgd, in [0, 1)."""

    rho: float = 0.1
    """Radius of the perturbation."""
    rho_of_weights: float = 0.0
    """If not 0, the radius is this fraction of the norm of the initial weights, and --rho is
    ignored (except for the second radius of gam). 0.009 suits small networks if ρ is not tuned."""
    alpha: float = 0.4
    """ARSAM: how strongly the ratio of the PSF to the gradient moves the sampling probability."""
    segment_length: int = 10
    """ARSAM: steps between two changes of the sampling probability."""
    reuse_steps: int = 2
    """ARSAM: steps after a sampled one that reuse its PSF. 0 is the ablation ARSAM-A."""
    share: float = 1 / 4
    """budgeted_sam: the share of sampled steps, in (0, 1]."""
    microbatches: int = 0
    """m_sam and budgeted_sam: the number of micro-batches that are perturbed separately. 0 means 2
    for m_sam, and the whole batch for budgeted_sam."""

    validation: bool = False
    """Evaluate on held-out training examples in place of the test set, to choose settings."""
    evaluate_every: int = 0
    """Epochs between two evaluations during training; 0 evaluates at the end only."""
    devices: int = 0
    """Devices that share each batch. 0 means one, or with --processes all of each process."""
    processes: str = ""
    """Train in several processes: auto under SLURM, Open MPI, Kubernetes or on Cloud TPU. Otherwise
    INDEX/NUMBER@HOST:PORT, such as 0/2@127.0.0.1:9876 and 1/2@127.0.0.1:9876."""
    input_threads: int = 0
    """Threads that read the next batches while the device trains; 0 reads a batch when it is
    needed."""
    checkpoint_seconds: float = 30.0
    """Seconds between two checkpoints. A run is also saved when it is interrupted and at its
    end."""
    tensorboard: bool = False
    """Also write TensorBoard event files: tensorboard --logdir OUTPUT."""
    output: Path = Path("runs")
    """Folder of all runs."""
    name: str = ""
    """Folder of this comparison in OUTPUT, if not the name of the task or row."""
    resume: bool = False
    """Continue in OUTPUT/NAME with the settings there. --method and --seeds may change."""
    smoke: bool = False
    """Only try the settings: four steps with one seed and small batches, in a temporary folder."""

    own_methods: ClassVar[tuple[str, ...]] = ()
    """Methods of the task itself, besides those of the library."""

    @property
    def folder(self) -> Path:
        return self.output / self.name

    def resume_command(self, program: str) -> str:
        """The command that continues the runs in the folder."""
        arguments = ["--resume", "--name", self.name]
        if self.output != Options.output:
            arguments += ["--output", str(self.output)]
        if self.processes:
            arguments += ["--processes", self.processes]
        return f"{program} {shlex.join(arguments)}"

    def impossible(self) -> dict[str, str]:
        """Methods that cannot run with these settings, and why. ``all`` leaves them out."""
        return {}

    def information(self) -> str:
        """A text to print instead of training, if not empty."""
        return ""

    def smaller(self, output: Path) -> Any:
        """These settings for two epochs of two small batches in another folder."""
        parts = max(1, self.devices) * max(1, self.microbatches)
        return dataclasses.replace(
            self,
            output=output,
            seeds=self.seeds[:1],
            epochs=2,
            warmup=0.0,
            batch_size=min(self.batch_size, 2 * parts * max(1, 4 // parts)),
            evaluate_every=min(self.evaluate_every, 1),
            input_threads=0,
            resume=False,
        )


@dataclasses.dataclass(frozen=True)
class _Start:
    """The options that determine the defaults of all others."""

    output: Path = Path("runs")
    name: str = ""
    resume: bool = False
    row: str = ""
    dataset: str = ""


def parse(
    options_type: type[Options],
    name: str,
    arguments: Sequence[str] | None = None,
    rows: Mapping[str, Options] | None = None,
) -> Any:
    """Reads the command line. The settings of a resumed run are its defaults.

    Args:
      rows: named settings of a task that has ``--row``. The first one is the default.

    Raises:
      ConfigError: for invalid settings.
    """
    program = f"python -m examples.{name}"
    start, _ = tyro.cli(
        _Start, args=arguments, prog=program, return_unknown_args=True, add_help=False
    )
    defaults = _row(options_type, start, rows) if rows else options_type()
    place = start.name or defaults.name or name
    file = start.output / place / settings.CONFIG_FILE
    if start.resume and file.exists():
        defaults = dataclasses.replace(settings.read(options_type, file), resume=False)
    defaults = dataclasses.replace(defaults, name=place)
    options = tyro.cli(options_type, args=arguments, default=defaults, prog=program)
    if "all" in options.method:
        options = dataclasses.replace(options, method=_all(options))
    check(options)
    return options


def _row(options_type: Any, start: _Start, rows: Mapping[str, Options]) -> Options:
    """The named row, the row that is named like the data set, or the first row."""
    if start.row and start.row not in rows:
        raise ConfigError(f"--row: there is no row {start.row!r}. --list shows all.")
    row = start.row or start.dataset or next(iter(rows))
    if row not in rows:
        return options_type(dataset=start.dataset, name=start.dataset)
    return dataclasses.replace(rows[row], name=row.rpartition("/")[2])


def _all(options: Options) -> tuple[str, ...]:
    """All methods except those that cannot run, unless they are named explicitly."""
    left_out = {m: why for m, why in options.impossible().items() if m not in options.method}
    for method, why in left_out.items():
        print(f"--method all leaves out {method}: {why}")
    return tuple(m for m in (BASE, *METHODS, *options.own_methods) if m not in left_out)


def check(options: Options) -> None:
    """Raises ConfigError for values out of range."""
    settings.check_all_numbers(options)
    for name in ("method", "seeds"):
        values = getattr(options, name)
        settings.require(len(values) > 0, f"--{name} needs at least one value")
        settings.require(len(set(values)) == len(values), f"--{name} contains a value twice")
    settings.require_known("method", options.method, (BASE, *METHODS, *options.own_methods))
    settings.require_known("optimizer", (options.optimizer,), OPTIMIZERS)
    start = options.warmup if options.schedule == "step" else 0
    settings.require(
        all(low < high for low, high in itertools.pairwise((start, *options.decay_at, 1))),
        f"--decay-at must rise within (0, 1) after --warmup, not {options.decay_at}",
    )
    settings.check_numbers(
        options,
        shares=("warmup", "momentum"),
        positive=("epochs", "batch_size", "segment_length"),
    )
    settings.require(0 < options.share <= 1, f"--share must be in (0, 1], not {options.share}")
    settings.require(
        options.batch_size % (options.microbatches or ("m_sam" in options.method) + 1) == 0,
        f"--batch-size {options.batch_size} must be a multiple of --microbatches, for m_sam 2 if"
        " not given",
    )
    is_folder = "/" not in options.name and options.name not in ("", ".", "..")
    settings.require(is_folder, f"--name must be the name of one folder, not {options.name!r}")


def check_folder(options: Options) -> None:
    """Raises ConfigError instead of overwriting a run or resuming with other settings."""
    folder, file = options.folder, options.folder / settings.CONFIG_FILE
    if not options.resume:
        if folder.exists() and any(path.suffix != ".tmp" for path in folder.iterdir()):
            raise ConfigError(
                f"{folder} is not empty. Continue its runs (or show finished ones again) with"
                " --resume, choose another --name, or delete the folder"
            )
        return
    if not file.exists():
        raise ConfigError(f"there is no run to resume in {folder}")
    stored = settings.to_dict(settings.read(type(options), file))
    changed = [
        f"--{settings.flag(key)} {stored[key]} → {value}"
        for key, value in settings.to_dict(options).items()
        if key not in _NOT_OF_RESULTS and stored[key] != value
    ]
    if changed:
        raise ConfigError(f"a resumed run keeps its settings, but {', '.join(changed)}")
