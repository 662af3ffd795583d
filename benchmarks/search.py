"""Searches for settings and runs what a CSV file does not have yet.

A run is a NamedTuple that identifies it, with the fields ``stage`` and ``seed`` among others. Every
finished run is written to the CSV file at once and is never repeated. The same command therefore
continues after an interruption, and an interrupted run is repeated from its start.
"""

import dataclasses
import itertools
import math
import multiprocessing
import os
import statistics
import threading
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from benchmarks import table

Done = dict[Any, dict[str, Any]]  # the row of each finished run


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of every benchmark that trains."""

    csv: Path
    """File of the results. The tables and the figure are written beside it."""
    workers: int = 1
    """Number of processes, each pinned to one core. 0 runs everything in the program itself."""
    report: bool = False
    """Only write the tables and the figure from the CSV file."""

    def __post_init__(self):
        if self.workers < 0:
            raise SystemExit(f"--workers must be at least 0, got {self.workers}.")


class Study(NamedTuple):
    """What this module has to know of a benchmark.

    Attributes:
      run: the NamedTuple of a run.
      execute: trains one run and returns its row. Workers import it by name, so it must be a
        function of a module other than ``__main__``, or a ``functools.partial`` of one.
      group: the key of runs that share a compiled program. They are done in one process.
      seconds: the approximate duration of a run.
      score: the column that is shown while the program runs, and that a search maximizes.
    """

    run: type
    execute: Callable[[Any], dict[str, Any]]
    group: Callable[[Any], tuple[Hashable, ...]]
    seconds: Callable[[Any], float]
    score: str = "score"


def scaled(setting: Any, names: Sequence[str], factor: float = 2) -> list[Any]:
    """The neighbours of a setting: each of these fields divided and multiplied by ``factor``."""
    return [
        setting._replace(**{name: float(f"{getattr(setting, name) * by:.6g}")})
        for name in names
        for by in (1 / factor, factor)
    ]


def climb(
    starts: Mapping[str, Any],
    neighbours: Callable[[Any], Sequence[Any]],
    scores_of: Callable[[Sequence[tuple[str, Any]]], Iterable[float]],
) -> dict[str, Any]:
    """Returns, for each problem, a setting that scores at least as high as all its neighbours.

    All problems take their steps together, because a single step asks for only a handful of runs,
    too few to keep every worker busy. NaN counts as the worst score.

    Args:
      starts: the first setting of each problem, by the problem's name.
      neighbours: the settings to compare with a setting.
      scores_of: the scores of pairs of a name and a setting. Higher is better.
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
                raise SystemExit(f"{name}: all runs at {at} and its neighbours diverged.")
            best = own[max(range(len(own)), key=values.__getitem__)][1]
            (found if best == at else moved)[name] = best
        settings = moved
    return {name: found[name] for name in starts}


def mean_score(runs: Iterable[Any], done: Done, study: Study) -> float:
    return statistics.fmean(done[run][study.score] for run in runs)


def read_rows(path: Path, run: Any) -> Done:
    """The rows of a CSV file by their runs."""
    return {run(*(row[name] for name in run._fields)): row for row in table.read(path)}


def run_all(runs: Iterable[Any], study: Study, options: Options) -> Done:
    """Runs what the CSV file does not have yet and returns all rows it then has."""
    done = read_rows(options.csv, study.run)
    missing = [run for run in dict.fromkeys(runs) if run not in done]
    if not missing:
        return done
    hours = sum(map(study.seconds, missing)) / 3600
    print(f"Training {len(missing)} runs, about {hours:.2g} hours on one core.", flush=True)
    groups = [list(group) for _, group in itertools.groupby(missing, key=study.group)]
    if options.workers == 0:
        for group in groups:
            _run_group(group, study.execute, study.score, options.csv)
        return read_rows(options.csv, study.run)
    context = multiprocessing.get_context("spawn")
    cores = context.SimpleQueue()
    for _, core in zip(range(options.workers), itertools.cycle(os.sched_getaffinity(0))):
        cores.put(core)
    with ProcessPoolExecutor(options.workers, context, _start_worker, (cores,)) as pool:
        same = study.execute, study.score, options.csv
        futures = [pool.submit(_run_group, group, *same) for group in groups]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return read_rows(options.csv, study.run)


def _run_group(group: Sequence[Any], execute: Callable[[Any], Any], score: str, csv: Path) -> None:
    """Writes every row as soon as it is known."""
    for run in group:
        row = execute(run)
        table.append(csv, row)
        name = " ".join(x if isinstance(x, str) else f"{x:g}" for x in run)
        print(f"{name}: {score} {row[score]:.4g}", flush=True)


def _start_worker(cores: Any) -> None:
    """Pins the process to a core, and ends it when its parent ends for any reason."""
    table.commit()  # now, because files may change while it works
    os.sched_setaffinity(0, {cores.get()})
    parent: Any = multiprocessing.parent_process()

    def follow():
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def check_names(options: Any, **known: Collection[str]) -> None:
    """Ends the program if an option names something unknown."""
    for option, names in known.items():
        for value in getattr(options, option):
            if value not in names:
                raise SystemExit(f"--{option}: {value!r} is not one of {', '.join(names)}.")


def check_seeds(seeds: Collection[int], tuning_seeds: Collection[int]) -> None:
    """Ends the program if reported runs would use a seed of the search."""
    if set(seeds) & set(tuning_seeds):
        raise SystemExit(f"--seeds {seeds} must differ from the seeds of the search {tuning_seeds}")


def command_line(main: Callable[[Any], None], options: Any, description: str | None) -> None:
    """The entry of a program that can be interrupted."""
    try:
        main(tyro.cli(options, description=description))
    except KeyboardInterrupt:
        raise SystemExit("Interrupted. The same command continues from here.") from None
