"""The protocol: what is searched for each peer, and what is run."""

import dataclasses
import functools
import itertools
import math
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks.harness import search, table, tuning
from benchmarks.harness.tuning import Run
from benchmarks.harness.workloads import Setting
from benchmarks.held_out import report
from benchmarks.held_out import study as held_out
from benchmarks.held_out.workloads import WORKLOADS
from benchmarks.peers.methods import BASES, PEERS


@dataclasses.dataclass(frozen=True)
class Options(search.Options):
    """Options of the benchmark."""

    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = table.RESULTS / "peers/peers.csv"
    """Results; tables are written beside it."""
    settings: Annotated[Path, tyro.conf.arg(metavar="FILE")] = (
        table.RESULTS / "held_out/held_out.csv"
    )
    """Results of `benchmarks.held_out`."""
    methods: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAMES")] = tuple(PEERS)
    """SGD and SAM are always among them."""
    seeds: tuple[int, ...] = tuple(range(10))
    """Reporting seeds."""

    def __post_init__(self):
        super().__post_init__()
        search.check_names(self, methods=PEERS)
        held_out.check_seeds(self.seeds)


def execute(run: Run) -> dict[str, Any]:
    """Trains and returns the row of a run."""
    return held_out.row_of(run, PEERS[run.method].method)


def seconds(run: Run) -> float:
    return held_out.seconds_of(run, PEERS[run.method].method)


STUDY = search.Study(Run, execute, tuning.group, seconds)
Chosen = dict[tuple[str, str], tuple[float, Setting]]  # of a training and a method: dial, setting


def find(options: Options, sgd: dict[str, Setting], sam: dict[str, Setting]) -> Chosen:
    """Each peer's best dial and radius on each training."""
    tried = {}
    for name, workload in itertools.product(options.methods, sam):
        own = PEERS[name]
        base = (sgd if name in BASES else sam)[workload]
        tried[workload, name] = [
            (dial, base._replace(rho=float(f"{factor * base.rho:.6g}")))
            for dial in own.method.shares
            for factor in own.factors
        ]

    def runs_of(workload, name, dial, setting):
        return [Run("tune", workload, name, dial, seed, *setting) for seed in held_out.TUNING_SEEDS]

    searched = {key: settings for key, settings in tried.items() if len(settings) > 1}
    runs = [runs_of(*key, *at) for key, settings in searched.items() for at in settings]
    done = search.run_all(itertools.chain(*runs), STUDY, options)

    def score(key, at):
        value = search.score(runs_of(*key, *at), done)
        return -math.inf if math.isnan(value) else value

    return {
        key: max(settings, key=functools.partial(score, key)) if key in searched else settings[0]
        for key, settings in tried.items()
    }


def settings_where_sam_gains(path: Path) -> dict[str, dict[str, Setting]]:
    """Of SGD and of SAM, on each training, as `benchmarks.held_out` has reported them."""
    rows = search.read_rows(path, Run)
    runs = sorted(run for run in rows if run.stage == "run" and run.method in held_out.REFERENCES)
    if not runs:
        raise SystemExit(f"--settings: {path} has no runs. `python -m benchmarks.held_out` first.")
    gains = report.gains(runs, rows)
    found: dict[str, dict[str, Setting]] = {name: {} for name in held_out.REFERENCES}
    for name in WORKLOADS:
        for run in runs:
            if run.workload == name and report.is_gain(gains[name]):
                found[run.method][name] = Setting(*run[5:])
    return found
