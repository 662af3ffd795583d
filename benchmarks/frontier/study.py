"""The protocol of the frontier: what is compared, and by which setting."""

from collections.abc import Sequence
from typing import Any

from benchmarks.frontier.ablations import ABLATIONS
from benchmarks.harness import search, tuning
from benchmarks.harness.methods import METHODS
from benchmarks.harness.search import Done
from benchmarks.harness.tuning import Point, Run
from benchmarks.harness.workloads import WORKLOADS

ALL_METHODS = METHODS | ABLATIONS
REFERENCES = ("sgd", "sam")  # the gap is between these two
ABLATED = ("budgeted_sam", "budgeted_sam_rising")


def points(
    stage: str, workloads: Sequence[str], methods: Sequence[str], shares: Sequence[float] = ()
) -> list[Point]:
    """What a stage compares: each method by its own ρ, or all that can by SAM's.

    Keeps only the points of each method whose knob has one of `shares`; all if there are none.
    """
    if stage == "ablations":
        chosen = [*REFERENCES, *ABLATED, *ABLATIONS]
        shares = (1, 1 / 8, 1 / 16)
    else:
        chosen = [name for name in METHODS if name in (*REFERENCES, *methods)]
    if stage in ("tuned", "tune"):
        chosen = [name for name in chosen if not METHODS[name].is_between]
    if stage == "transfer":
        chosen = [name for name in chosen if not METHODS[name].has_own_radius]
    if stage != "ablations" and not {*methods} & {*chosen}:
        raise SystemExit(f"--methods: stage {stage} compares none of {', '.join(methods)}")
    return [
        (workload, method, share)
        for workload in workloads
        for method in chosen
        for share in ALL_METHODS[method].shares
        if not shares or method in REFERENCES or share in shares or share == 0
    ]


def reporting_runs(
    stage: str, chosen: Sequence[Point], seeds: Sequence[int], draws: int, done: Done
) -> list[Run]:
    """The runs of a stage on the test set, once its searches are done."""
    is_tuned, runs = stage == "tuned", []
    for point in chosen:
        setting = tuning.best_setting(point if is_tuned else (point[0], "sam", 1), draws, done)
        protocol = "tuned" if is_tuned else "transfer"
        runs += [Run(protocol, *point, seed, *setting) for seed in seeds]
    return runs


def execute(run: Run) -> dict[str, Any]:
    """Trains and returns the row of a run."""
    held_out = "validation" if run.stage == "tune" else "test"
    method = ALL_METHODS[run.method]
    return tuning.train_row(run, WORKLOADS[run.workload], method.make, method.cost, held_out)


def seconds(run: Run) -> float:
    return tuning.seconds(run, ALL_METHODS[run.method].cost)


STUDY = search.Study(Run, execute, tuning.group, seconds)


def in_order(rows: Done) -> list[dict[str, Any]]:
    """The rows of known methods and workloads as these are listed, the dearest share first."""
    known = [run for run in rows if run.method in ALL_METHODS and run.workload in WORKLOADS]
    workloads, methods = list(WORKLOADS), list(ALL_METHODS)

    def place(run):
        return workloads.index(run.workload), methods.index(run.method), -run.share, run.seed

    return [rows[run] for run in sorted(known, key=place)]
