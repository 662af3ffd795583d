"""Accuracy against cost of every method that spends gradients.

Protocol. Every method gets the same search: the same quasi-random draws of ρ, learning rate and
weight decay, on tuning seeds, scored on clean labels of examples held out from the training set.
The test set is read by the reporting seeds alone, once for each of two protocols:

- `tuned`: each method at each share with the setting that its own search found;
- `transfer`: every method with the setting that the search found for SAM. A method may map that ρ
  by itself: this is what a user does who keeps SAM's ρ and chooses a price.

Every finished run is a line of a CSV file at once, and is never done again: a run that was
interrupted is resumed by the same command.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import rich
import tyro

from benchmarks.frontier import report, study
from benchmarks.frontier.ablations import ABLATIONS
from benchmarks.harness import search, tuning
from benchmarks.harness.methods import METHODS
from benchmarks.harness.table import RESULTS
from benchmarks.harness.workloads import WORKLOADS


@dataclasses.dataclass(frozen=True)
class Options(search.Options):
    """Options of the benchmark."""

    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = RESULTS / "frontier" / "frontier.csv"
    """Results; figures and tables are written beside it."""
    stage: Literal["transfer", "ablations", "tuned", "tune", "report"] = "transfer"
    """What to run. `transfer` and `tuned` search first where results are missing; `ablations` are
    parts of `budgeted_sam` replaced, by the protocol of `transfer`; `tune` is the search of `tuned`
    alone; `report` draws what the CSV file has."""
    workloads: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAMES")] = tuple(WORKLOADS)
    methods: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAMES")] = tuple(METHODS)
    """SGD and SAM are always among them."""
    shares: tuple[float, ...] = ()
    """Keeps only the points of each method whose knob has one of these values; all if empty."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Reporting seeds."""
    draws: int = tuning.DRAWS
    """Settings that the search tries for each method and share; the first is the workload's own,
    so 1 is no search."""
    quick: bool = False
    """Minutes: two workloads, a few methods at 1/8, two seeds, no search, results in runs/."""

    def __post_init__(self):
        super().__post_init__()
        search.check_names(self, workloads=WORKLOADS, methods=METHODS)
        if self.draws < 1:
            raise SystemExit(f"--draws: {self.draws} is below 1")
        if set(self.seeds) & set(tuning.TUNING_SEEDS):
            raise SystemExit(f"--seeds must differ from the tuning seeds {tuning.TUNING_SEEDS}")


def quick(options: Options) -> Options:
    return dataclasses.replace(
        options,
        workloads=("m1d_mlp_clean", "fmnist_mlp_noisy"),
        methods=("sam_every_k", "random_reuse", "budgeted_sam"),
        shares=(1 / 8,),
        seeds=(0, 1),
        draws=1,
        csv=Path("runs/frontier/quick.csv"),
    )


def main(options: Options) -> None:
    if options.quick:
        options = quick(options)
    stage, draws = options.stage, options.draws
    choice = options.workloads, options.methods, options.shares
    if stage != "report":
        searched = [(workload, "sam", 1.0) for workload in options.workloads]
        if stage in ("tune", "tuned"):
            searched = study.points(stage, *choice)
        runs = [run for point in searched for run in tuning.tuning_runs(point, draws)]
        done = search.run_all(runs, study.STUDY, options)
        if stage != "tune":
            points = study.points(stage, *choice)
            runs = study.reporting_runs(stage, points, options.seeds, draws, done)
            search.run_all(runs, study.STUDY, options)
    rows = study.in_order(search.read_rows(options.csv, tuning.Run))
    if not rows:
        raise SystemExit(f"--csv: {options.csv} has no finished runs")
    for path in report.write(rows, options.csv, ablations=tuple(ABLATIONS)):
        rich.print(f"wrote {path}")


if __name__ == "__main__":
    search.command_line(main, Options, __doc__)
