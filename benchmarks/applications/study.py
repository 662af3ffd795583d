"""The protocol of the study of the applications: what is searched, what is run, and how.

A setting is a learning rate and a radius. The search climbs a ladder of powers of two from the
defaults of the program: it looks at the neighbours of the best setting so far, and ends where none
of them is better, so never at an edge. It starts for SAM at the learning rate that was best for the
base optimizer. What samples SAM's gradient less often keeps its radius, and climbs from its
learning rate to one of its own. Its seeds serve nothing else, and it sees held-out training
examples alone.
"""

import atexit
import dataclasses
import functools
import itertools
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from benchmarks.harness import search, table
from examples.common import comparison, methods
from examples.common.comparison import BASE
from examples.language.__main__ import Language
from examples.language.__main__ import Options as LanguageOptions
from examples.pose.__main__ import Options as PoseOptions
from examples.pose.__main__ import Pose
from examples.quantization.__main__ import Options as QuantizationOptions
from examples.quantization.__main__ import Quantization
from examples.segmentation.__main__ import Options as SegmentationOptions
from examples.segmentation.__main__ import Segmentation

RESULTS = ("percent_sam", "seconds", "steps", "train_loss")


class Application(NamedTuple):
    """A program of ``examples``.

    Attributes:
      options: makes its settings, the defaults but for what is given.
      task: makes the task of them; the first of its ``measures`` decides the search.
      goal: what is better of that measure, ``min`` or ``max``.
    """

    options: Callable[..., comparison.Options]
    task: Any
    goal: Callable[..., Any]

    @property
    def measures(self) -> tuple[str, ...]:
        return tuple(self.task.measures)


APPLICATIONS = {
    "language": Application(LanguageOptions, Language, min),
    "segmentation": Application(SegmentationOptions, Segmentation, max),
    "pose": Application(PoseOptions, Pose, max),
    "quantization": Application(QuantizationOptions, Quantization, max),
    "quantization_of_weights": Application(
        functools.partial(QuantizationOptions, through="weights"), Quantization, max
    ),
}


class Setting(NamedTuple):
    """What is searched; the radius is 0 where there is none."""

    learning_rate: float
    rho: float


class Run(NamedTuple):
    """What identifies a run."""

    stage: str
    application: str
    method: str
    learning_rate: float
    rho: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    application: Annotated[str, tyro.conf.Positional] = "language"
    """A program of examples: language, segmentation, pose, quantization or, with --through weights,
    quantization_of_weights."""
    folder: Path = table.RESULTS / "applications"
    """Of the results: a CSV file of the name of the program, and beside it figure and tables."""
    workers: int = 1
    """Processes, each pinned to one core; 0 runs in the program's own."""
    methods: tuple[str, ...] = (BASE, "sam", "arsam", "budgeted_sam")
    """What is searched and run; base and sam are searched in any case."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the reported runs."""
    tuning_seeds: tuple[int, ...] = (100, 101, 102)
    """Of the search."""

    def __post_init__(self):
        if self.application not in APPLICATIONS:
            raise SystemExit(f"{self.application!r} is none of {', '.join(APPLICATIONS)}")
        search.check_names(self, methods=(BASE, *methods.METHODS))
        if {*self.seeds} & {*self.tuning_seeds}:
            raise SystemExit("--seeds: some are --tuning-seeds, which are for the search alone")

    @property
    def results(self) -> search.Options:
        return search.Options(self.folder / f"{self.application}.csv", self.workers)


def execute(run: Run) -> dict[str, Any]:
    """Trains; returns the row of the CSV file."""
    trainer = _trainer(run._replace(seed=0))
    with tempfile.TemporaryDirectory() as folder:
        result = trainer.train(run.method, run.seed, Path(folder))
    values = {name: result[name] for name in RESULTS} | result["measures"]
    return run._asdict() | values | table.provenance()


@functools.lru_cache(maxsize=1)  # runs of one setting follow one another and compile once
def _trainer(run: Run) -> comparison.Trainer:
    options = to_options(run)
    return comparison.Trainer(options, APPLICATIONS[run.application].task(options))


def to_options(run: Run) -> comparison.Options:
    """The settings of the program: its defaults, but for what the run says."""
    own = {"rho": run.rho} if run.method != BASE else {}
    return dataclasses.replace(
        APPLICATIONS[run.application].options(),
        method=(run.method,),
        learning_rate=run.learning_rate,
        validation=run.stage == "search",
        output=_scratch(),
        name=run.stage,
        checkpoint_seconds=1e9,  # at the end alone
        **own,
    )


@functools.cache
def _scratch() -> Path:
    """Where a program of this process keeps what its runs share: the float network of a seed."""
    folder = Path(tempfile.mkdtemp(prefix="applications-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


STUDY = search.Study(
    run=Run,
    execute=execute,
    group=lambda run: run[:-1],
    seconds=lambda run: 2.0 if run.method == "sam" else 1.3 if run.method != BASE else 1.0,
)


def start(application: str) -> Setting:
    options = APPLICATIONS[application].options()
    return Setting(options.learning_rate, options.rho)


def searched(method: str) -> tuple[str, ...]:
    """The fields of its setting that are searched for it."""
    return Setting._fields if method == "sam" else ("learning_rate",)


def find(options: Options, study: search.Study, method: str, first: Setting) -> Setting:
    """The best setting of a method."""
    sign = 1 if APPLICATIONS[options.application].goal is max else -1

    def scores_of(tried):
        runs = [runs_of(options, "search", method, s, options.tuning_seeds) for _, s in tried]
        done = search.run_all(itertools.chain(*runs), study, options.results)
        return [sign * statistics.fmean(done[run][study.measure] for run in own) for own in runs]

    def neighbours(setting):
        return search.scaled(setting, searched(method))

    return search.climb({method: first}, neighbours, scores_of)[method]


def runs_of(
    options: Options, stage: str, method: str, setting: Setting, seeds: tuple[int, ...]
) -> list[Run]:
    return [Run(stage, options.application, method, *setting, seed) for seed in seeds]
