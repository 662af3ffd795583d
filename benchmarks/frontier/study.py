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

import csv
import dataclasses
import fcntl
import io
import itertools
import multiprocessing
import os
import queue
import statistics
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import rich
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import arsam_jax
from benchmarks.frontier import report as frontier_report
from benchmarks.harness.methods import ABLATIONS, METHODS
from benchmarks.harness.workloads import WORKLOADS, MakeLink, Setting, Workload, train

TUNING_SEEDS = (100, 101)


ALL_METHODS = METHODS | ABLATIONS
REFERENCES = ("sgd", "sam")  # the gap is between these two


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

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
    draws: int = 8
    """Settings that the search tries for each method and share; the first is the workload's own,
    so 1 is no search."""
    workers: int = 1
    """Processes, each pinned to one core."""
    quick: bool = False
    """Minutes: two workloads, a few methods at 1/8, two seeds, no search, results in runs/."""
    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("benchmarks/frontier.csv")
    """Results; figure and tables are written beside it."""

    def __post_init__(self):
        check_names(self, workloads=WORKLOADS, methods=METHODS)
        if self.draws < 1 or self.workers < 1:
            raise SystemExit("--draws and --workers must be at least 1")
        if set(self.seeds) & set(TUNING_SEEDS):
            raise SystemExit(f"--seeds must differ from the tuning seeds {TUNING_SEEDS}")


def check_names(options: Any, **known: Collection[str]) -> None:
    """Ends the program where an option names what is not among the known."""
    for option, names in known.items():
        for value in getattr(options, option):
            if value not in names:
                raise SystemExit(f"--{option}: {value!r} is none of {', '.join(names)}")


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


class Run(NamedTuple):
    """What identifies a run. `share` is the value of the method's price knob."""

    stage: str
    workload: str
    method: str
    share: float
    seed: int
    rho: float
    learning_rate: float
    weight_decay: float


Point = tuple[str, str, float]  # workload, method, share
RANGES = Setting(rho=(1 / 3, 4), learning_rate=(1 / 4, 2), weight_decay=(1 / 2, 8))  # factors
COLUMNS = (
    *Run._fields,
    "accuracy",  # in %, on the validation examples in stage "tune", else on the test set
    "gradients_per_step",
    "seconds_per_step",
    "train_loss",  # mean of the last epoch
    "top_hessian_eigenvalue",
    "sharpness",
    "peak_bytes",
    "steps",
    "date",
    "device",
    "versions",
)
WORDS = ("stage", "workload", "method", "date", "device", "versions")


def candidates(center: Setting, draws: int) -> list[Setting]:
    """The settings every method is tried with: `center`, then Halton points around it."""
    settings = [center]
    for i in range(1, draws):
        factors = (
            low * (high / low) ** halton(i, base)
            for (low, high), base in zip(RANGES, (2, 3, 5), strict=True)
        )
        values = (float(f"{x * f:.4g}") for x, f in zip(center, factors, strict=True))
        settings.append(Setting(*values))
    return settings


def halton(index: int, base: int) -> float:
    """The van der Corput sequence in this base, in [0, 1); one base a dimension is Halton's."""
    value, digit = 0.0, 1.0
    while index:
        index, remainder = divmod(index, base)
        digit /= base
        value += digit * remainder
    return value


def points(options: Options, stage: str) -> list[Point]:
    """What a stage compares: each method by its own ρ, or all that can by SAM's."""
    if stage == "ablations":
        chosen = [*REFERENCES, "budgeted_sam", "budgeted_sam_rising", *ABLATIONS]
        options = dataclasses.replace(options, shares=(1, 1 / 8, 1 / 16))
    else:
        chosen = [name for name in METHODS if name in (*REFERENCES, *options.methods)]
    if stage in ("tuned", "tune"):
        chosen = [name for name in chosen if not METHODS[name].is_between]
    if stage == "transfer":
        chosen = [name for name in chosen if not METHODS[name].has_own_radius]
    if stage != "ablations" and not {*options.methods} & {*chosen}:
        raise SystemExit(f"--methods: stage {stage} compares none of {', '.join(options.methods)}")
    return [
        (workload, method, share)
        for workload in options.workloads
        for method in chosen
        for share in ALL_METHODS[method].shares
        if not options.shares or method in REFERENCES or share in options.shares or share == 0
    ]


def tuning_runs(point: Point, draws: int) -> list[Run]:
    """The search of one method at one share; the same settings and seeds for all of them."""
    if draws == 1:
        return []
    settings = candidates(WORKLOADS[point[0]].setting, draws)
    return [Run("tune", *point, seed, *s) for s in settings for seed in TUNING_SEEDS]


def best_setting(point: Point, draws: int, done: dict[Run, dict]) -> Setting:
    """The candidate of the highest mean validation accuracy; the earlier one of equals."""

    def score(setting):
        runs = (Run("tune", *point, seed, *setting) for seed in TUNING_SEEDS)
        return statistics.fmean(done[run]["accuracy"] for run in runs)

    settings = candidates(WORKLOADS[point[0]].setting, draws)
    return settings[0] if draws == 1 else max(settings, key=score)


def execute(run: Run) -> dict:
    """Trains and returns the row of a run."""
    held_out = "validation" if run.stage == "tune" else "test"
    return train_row(run, WORKLOADS[run.workload], ALL_METHODS[run.method].make, held_out)


def train_row(
    run: Run, workload: Workload, make: MakeLink, held_out: Literal["validation", "test"]
) -> dict:
    """Trains `workload` with the link that `make` makes and returns the row of `run`."""
    setting = Setting(run.rho, run.learning_rate, run.weight_decay)
    result = train(workload, make, run.share, setting, run.seed, held_out)
    row = run._asdict() | result._asdict()
    cost = ALL_METHODS[run.method].cost
    row["gradients_per_step"] = cost(row.pop("sampled_share"), run.share)
    row["date"] = time.strftime("%Y-%m-%d")
    row["device"] = jax.devices()[0].device_kind
    row["versions"] = f"jax {jax.__version__}, arsam_jax {arsam_jax.__version__}"
    return row


def read_table(
    path: Path, words: Collection[str], integers: Collection[str] = ()
) -> list[dict[str, Any]]:
    """The rows of a CSV file, but for words as numbers; a last line that was cut off is dropped."""
    text = path.read_text() if path.exists() else ""
    return [
        {k: v if k in words else int(v) if k in integers else float(v) for k, v in line.items()}
        for line in csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    ]


def read_rows(path: Path) -> dict[Run, dict]:
    """The finished runs of a CSV file."""
    rows = read_table(path, WORDS, ("seed",))
    return {Run(*(row[name] for name in Run._fields)): row for row in rows}


def in_order(rows: dict[Run, dict]) -> list[dict]:
    """The rows of known methods and workloads as these are listed, the dearest share first."""
    known = [run for run in rows if run.method in ALL_METHODS and run.workload in WORKLOADS]
    workloads, methods = list(WORKLOADS), list(ALL_METHODS)

    def place(run):
        return workloads.index(run.workload), methods.index(run.method), -run.share, run.seed

    return [rows[run] for run in sorted(known, key=place)]


def append_row(path: Path, row: dict, columns: Sequence[str] = COLUMNS) -> None:
    """Adds one whole line, on disk when this returns; removes a last line that was cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        line = io.StringIO()
        writer = csv.DictWriter(line, columns, lineterminator="\n")
        if not whole:
            writer.writeheader()
        writer.writerow(
            {k: float(f"{v:.7g}") if isinstance(v, float) else v for k, v in row.items()}
        )
        file.write(line.getvalue().encode())
        file.flush()
        os.fsync(file.fileno())


def run_all(runs: Iterable[Run], options: Options, run_one: Callable[[Run], dict] = execute):
    """Runs what the CSV file does not have yet and returns all it then has.

    Each worker takes all runs of one method and share at once, which compiles them once.
    """
    done = read_rows(options.csv)
    missing = [run for run in dict.fromkeys(runs) if run not in done]
    groups: queue.SimpleQueue[list[Run]] = queue.SimpleQueue()
    for _, group in itertools.groupby(missing, key=lambda run: run[:4]):
        groups.put(list(group))
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
    )
    left = sum(map(_estimate, missing)) / options.workers
    title = missing[0].stage if missing else "nothing to run"
    task = progress.add_task(title, total=len(missing), left=f"about {_duration(left)} left")
    start, lock, spent = time.monotonic(), threading.Lock(), 0.0
    total = sum(map(_estimate, missing))

    def finish(run, row):
        nonlocal spent
        with lock:
            append_row(options.csv, row)
            done[run] = row
            spent += _estimate(run)
            rest = (time.monotonic() - start) * (total - spent) / spent
            progress.update(task, advance=1, left=f"about {_duration(rest)} left")

    def work(core):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context, initializer=start_worker, initargs=(core,)) as pool:
            while True:
                try:
                    group = groups.get_nowait()
                except queue.Empty:
                    return
                for run in group:
                    finish(run, pool.submit(run_one, run).result())
                with lock:
                    _print_group(progress, group, [done[run] for run in group])

    with progress:
        cores = sorted(os.sched_getaffinity(0))
        _run_threads(work, [cores[i % len(cores)] for i in range(options.workers)])
    return read_rows(options.csv)


def start_worker(core: int) -> None:
    """Pins the process and ends it with its parent, however that ends."""
    os.sched_setaffinity(0, {core})
    parent: Any = multiprocessing.parent_process()

    def follow():
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _run_threads(work, arguments):
    """Runs `work` of each argument in a thread and raises what any of them raised."""
    errors = []

    def guarded(argument):
        try:
            work(argument)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=[a], daemon=True) for a in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _print_group(progress, group: Sequence[Run], rows: Sequence[dict]) -> None:
    run, accuracies = group[0], [row["accuracy"] for row in rows]
    best = f", best {max(accuracies):.2f}" if run.stage == "tune" else ""
    progress.console.print(
        f"{run.stage} {run.workload} {run.method} {run.share:g}: accuracy"
        f" {statistics.fmean(accuracies):.2f}{best}, {len(group)} runs,"
        f" {progress.tasks[0].fields['left']}",
        highlight=False,
        soft_wrap=True,
    )


def _estimate(run: Run) -> float:
    """Seconds of a run, roughly, its share of the compilation included."""
    return 3 + WORKLOADS[run.workload].seconds * ALL_METHODS[run.method].cost(run.share, run.share)


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min"


def main(options: Options) -> None:
    if options.quick:
        options = quick(options)
    stage, draws = options.stage, options.draws
    if stage in ("tune", "tuned"):
        tuned = points(options, "tuned")
    else:
        tuned = [(workload, "sam", 1) for workload in options.workloads]
    done = {}
    if stage != "report":
        done = run_all([run for p in tuned for run in tuning_runs(p, draws)], options)
    if stage in ("transfer", "ablations", "tuned"):
        protocol, runs = ("tuned" if stage == "tuned" else "transfer"), []
        for point in points(options, stage):
            source = point if stage == "tuned" else (point[0], "sam", 1)
            setting = best_setting(source, draws, done)
            runs += [Run(protocol, *point, seed, *setting) for seed in options.seeds]
        run_all(runs, options)
    rows = in_order(read_rows(options.csv))
    if not rows:
        raise SystemExit(f"--csv: {options.csv} has no finished runs")
    for path in frontier_report.write(rows, options.csv, ablations=tuple(ABLATIONS)):
        rich.print(f"wrote {path}")


def run_resumable(main: Callable[[Any], None], options: Any, description: str | None) -> None:
    """The command line of a benchmark that can be interrupted."""
    try:
        main(tyro.cli(options, description=description))
    except KeyboardInterrupt:
        raise SystemExit("Interrupted. The same command goes on from here.") from None


if __name__ == "__main__":
    run_resumable(main, Options, __doc__)
