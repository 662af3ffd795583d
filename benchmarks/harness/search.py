"""The search of every study: what to try, what is left to run, and who runs it.

A run is a NamedTuple that identifies it, with the fields ``stage`` and ``seed`` among others. Every
finished run is a line of a CSV file at once, and is never done again: a run that was interrupted is
resumed by the same command.
"""

import dataclasses
import itertools
import math
import multiprocessing
import os
import queue
import statistics
import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from benchmarks.harness import table

Done = dict[Any, dict[str, Any]]  # the row of each finished run


@dataclasses.dataclass(frozen=True)
class Options:
    """What every study that searches is asked."""

    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """Results; figures and tables are written beside it."""
    workers: int = 1
    """Processes, each pinned to one core; 0 runs in the program's own."""

    def __post_init__(self):
        if self.workers < 0:
            raise SystemExit(f"--workers: {self.workers} is below 0")


class Study(NamedTuple):
    """What the search has to know of a study.

    Attributes:
      run: the NamedTuple of a run.
      execute: does one run and returns its row. It is a function of a module that is imported,
        not of ``__main__``, since workers import it.
      group: of runs that follow one another, those of one group are done in one process, which
        can keep what it compiled.
      seconds: of a run, roughly.
      measure: the column that is shown on the way.
    """

    run: type
    execute: Callable[[Any], dict[str, Any]]
    group: Callable[[Any], tuple[Hashable, ...]]
    seconds: Callable[[Any], float]
    measure: str = "accuracy"


def halton(index: int, base: int) -> float:
    """The van der Corput sequence in this base, in [0, 1); one base a dimension is Halton's."""
    value, digit = 0.0, 1.0
    while index:
        index, remainder = divmod(index, base)
        digit /= base
        value += digit * remainder
    return value


def candidates(
    ranges: Sequence[tuple[float, float]], count: int, bases: Sequence[int], digits: int
) -> list[list[float]]:
    """Halton's points 1 to `count`, log-uniform in these ranges; more go on where fewer ended."""

    def value(index, low, high, base):
        return float(f"{low * (high / low) ** halton(index, base):.{digits}g}")

    return [
        [value(index, *ends, base) for ends, base in zip(ranges, bases, strict=True)]
        for index in range(1, count + 1)
    ]


def score(runs: Iterable[Any], done: Done) -> float:
    """The mean accuracy; NaN where a run is missing."""
    return statistics.fmean(done[run]["accuracy"] if run in done else math.nan for run in runs)


def scaled(setting: Any, names: Sequence[str], factor: float = 2) -> list[Any]:
    """A NamedTuple of numbers with each of these fields divided, and multiplied by `factor`."""
    return [
        setting._replace(**{name: float(f"{getattr(setting, name) * by:.6g}")})
        for name in names
        for by in (1 / factor, factor)
    ]


def best(settings: Sequence[Any], runs_of: Callable[[Any], Iterable[Any]], done: Done) -> Any:
    """The setting whose runs score highest, the earlier one of equals."""
    scores = [score(runs_of(setting), done) for setting in settings]
    if any(map(math.isnan, scores)):
        missing = [run for setting in settings for run in runs_of(setting) if run not in done]
        raise SystemExit(f"The search is not done: {len(missing)} runs are missing, {missing[0]}")
    return settings[max(range(len(settings)), key=scores.__getitem__)]


def climb(
    starts: Mapping[str, Any],
    neighbours: Callable[[Any], Sequence[Any]],
    scores_of: Callable[[Sequence[tuple[str, Any]]], Iterable[float]],
) -> dict[str, Any]:
    """The setting that none of its neighbours beats, so never one at an edge, of each problem.

    All climbs take a step at a time together: a step asks for a handful of runs, too few to keep
    every worker busy. A score that is no number is the worst.

    Args:
      starts: a setting of each problem, by its name.
      neighbours: of a setting.
      scores_of: of pairs of a name and a setting, the higher the better.
    """
    found, settings = {}, dict(starts)
    while settings:
        tried = [(name, s) for name, at in settings.items() for s in (at, *neighbours(at))]
        scores = dict(zip(tried, scores_of(tried), strict=True))
        moved = {}
        for name, at in settings.items():
            own = [pair for pair in tried if pair[0] == name]
            values = [-math.inf if math.isnan(scores[pair]) else scores[pair] for pair in own]
            if max(values) == -math.inf:
                raise SystemExit(f"{name}: no run gave a number at {at} or beside it")
            best = own[max(range(len(own)), key=values.__getitem__)][1]
            (found if best == at else moved)[name] = best
        settings = moved
    return {name: found[name] for name in starts}


def read_rows(path: Path, run: type) -> Done:
    """The finished runs of a CSV file."""
    kinds: dict[str, type] = run.__annotations__
    words = [name for name, kind in kinds.items() if kind is str]
    return {run(*(row[name] for name in kinds)): row for row in table.read_table(path, words)}


def run_all(runs: Iterable[Any], study: Study, options: Options) -> Done:
    """Runs what the CSV file does not have yet and returns all it then has."""
    done = read_rows(options.csv, study.run)
    missing = [run for run in dict.fromkeys(runs) if run not in done]
    if not missing:
        return done
    groups: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
    for _, group in itertools.groupby(missing, key=study.group):
        groups.put(list(group))
    with _Left(missing, study, max(1, options.workers)) as left:

        def work(submit):
            while True:
                try:
                    group = groups.get_nowait()
                except queue.Empty:
                    return
                for run in group:
                    row = submit(run)
                    with left.lock:
                        table.append_row(options.csv, row)
                        done[run] = row
                        left.finish(run)
                with left.lock:
                    left.print_group(group, [done[run] for run in group])

        def work_on_core(core):
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, context, _start_worker, (core,)) as pool:
                work(lambda run: pool.submit(study.execute, run).result())

        if options.workers:
            cores = itertools.cycle(sorted(os.sched_getaffinity(0)))
            _run_threads(work_on_core, list(itertools.islice(cores, options.workers)))
        else:
            work(study.execute)
    return read_rows(options.csv, study.run)


class _Left(Progress):
    """What is left to run, and for how long."""

    def __init__(self, missing: Sequence[Any], study: Study, workers: int):
        text, time_left = TextColumn("{task.description}"), TextColumn("{task.fields[left]}")
        super().__init__(text, BarColumn(), MofNCompleteColumn(), time_left)
        self.lock = threading.Lock()
        self._study = study
        self._start, self._spent = time.monotonic(), 0.0
        self._total = sum(map(study.seconds, missing))
        left = _duration(self._total / workers)
        self._task = self.add_task(missing[0].stage, total=len(missing), left=left)

    def finish(self, run: Any) -> None:
        self._spent += self._study.seconds(run)
        rest = (time.monotonic() - self._start) * (self._total - self._spent) / self._spent
        self.update(self._task, advance=1, left=_duration(rest))

    def print_group(self, group: Sequence[Any], rows: Sequence[dict[str, Any]]) -> None:
        measure = self._study.measure
        values = [row[measure] for row in rows]
        name = " ".join(x if isinstance(x, str) else f"{x:g}" for x in self._study.group(group[0]))
        self.console.print(
            f"{name}: {measure} {statistics.fmean(values):.4g}, {min(values):.4g} to"
            f" {max(values):.4g}, {len(group)} runs, {self.tasks[0].fields['left']}",
            highlight=False,
            soft_wrap=True,
        )


def _duration(seconds: float) -> str:
    rest = f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min"
    return f"about {rest} left"


def _start_worker(core: int) -> None:
    """Pins the process and ends it with its parent, however that ends."""
    table.commit()  # now, since the files may change while it works
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


def check_names(options: Any, **known: Collection[str]) -> None:
    """Ends the program where an option names what is not among the known."""
    for option, names in known.items():
        for value in getattr(options, option):
            if value not in names:
                raise SystemExit(f"--{option}: {value!r} is none of {', '.join(names)}")


def command_line(main: Callable[[Any], None], options: Any, description: str | None) -> None:
    """Of a study that can be interrupted."""
    try:
        main(tyro.cli(options, description=description))
    except KeyboardInterrupt:
        raise SystemExit("Interrupted. The same command goes on from here.") from None
