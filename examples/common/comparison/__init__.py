"""Compares methods on a task: trains, records, saves and resumes each method with each seed.

A task is a subclass of ``Task`` with a dataclass of options. Its program is::

    if __name__ == "__main__":
        sys.exit(comparison.main(MyOptions, MyTask, "mytask"))
"""

import contextlib
import io
import logging
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich import progress
from rich.console import Console

from examples.common import devices, processes
from examples.common.comparison import report
from examples.common.comparison.options import BASE, Options, check_folder, parse
from examples.common.comparison.trainer import RESULT_FILE, Task, Trainer
from examples.common.errors import CheckpointError, ConfigError, DataError, StoppedError
from examples.common.settings import resume_arguments, to_dict, write
from examples.common.stopping import stop_on_signal

__all__ = ["BASE", "Options", "Task", "Trainer", "main", "parse", "report"]


def main(
    options_type: type[Options],
    make_task: Callable[[Any], Task],
    name: str,
    arguments: Sequence[str] | None = None,
    rows: Mapping[str, Options] | None = None,
) -> int:
    """Runs the program of a task and returns its exit status.

    Args:
      rows: named settings, see ``parse``.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack some characters
    try:
        options = parse(options_type, name, arguments, rows)
        if options.information():
            print(options.information())
            return 0
        if options.processes:
            processes.join(options.processes)
        devices.make_mesh(options.devices)  # before the task starts a backend with one device
        with contextlib.ExitStack() as stack:
            if options.smoke:
                if jax.process_count() > 1:
                    raise ConfigError("--smoke is for one process")
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                options = options.smaller(Path(folder))
            check_folder(options)
            return _compare(options, make_task(options), f"python -m examples.{name}")
    except (ConfigError, DataError, CheckpointError, OSError) as error:
        console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        console.print(f"error: {error}", style="red", soft_wrap=True)
        return 2
    except (Exception, KeyboardInterrupt):
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        print("Was another process lost? Start all again with --resume.", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)  # the usual exit waits for the other processes, and one may be dead


def _compare(options: Options, task: Task, program: str) -> int:
    """Trains the runs that are not finished, and reports."""
    trainer, folder = Trainer(options, task), options.folder
    console = Console(quiet=not processes.is_main(), markup=False, emoji=False, highlight=False)
    runs = [
        (method, seed)
        for seed in options.seeds
        for method in options.method
        if not (_place(folder, method, seed) / RESULT_FILE).exists()
    ]
    same = to_dict(options) | {"processes": ""}
    processes.require_same("the settings", same)
    processes.require_same("the runs that are finished", runs)
    if processes.is_main():  # all processes have looked into the folder by now
        folder.mkdir(parents=True, exist_ok=True)
        write(options)
    if task.description:
        console.print(task.description)
    _warn(options, trainer.total_steps, console)
    if runs:
        console.print(f"Training {len(runs)} runs of {trainer.total_steps:,} steps")
    with stop_on_signal() as should_stop:
        try:
            _train(trainer, runs, console, should_stop)
        except StoppedError as error:
            resume = shlex.join([*program.split(), *resume_arguments(options)])
            console.print(f"Saved and stopped: {error}. Continue with:")
            console.print(f"  {resume}", soft_wrap=True)
            return 128 + (should_stop.signal or 0)
    if processes.is_main():
        report.write(folder, task.measures, console, options.published())
    return 0


def _train(
    trainer: Trainer,
    runs: list[tuple[str, int]],
    console: Console,
    should_stop: Callable[[], bool],
) -> None:
    """Trains the runs and shows how far they are.

    The methods of a seed run one after another, so that a change of the load of the machine does
    not favour one of them.
    """
    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[now]}", markup=False),
    )
    with progress.Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        all_runs = bars.add_task("all runs", total=len(runs) * trainer.total_steps, now="")
        for number, (method, seed) in enumerate(runs):
            name, before = f"{method}, seed {seed}", number * trainer.total_steps
            bar = bars.add_task(name, total=trainer.total_steps, now="compiling")

            def show(step: int, loss: float, percent_sam: float, bar=bar, before=before) -> None:
                now = f"loss {loss:.3f}  {percent_sam:.0f} %SAM"
                bars.update(bar, completed=step, now=now)
                bars.update(all_runs, completed=before + step)

            place = _place(trainer.options.folder, method, seed)
            result = trainer.train(method, seed, place, show, should_stop)
            bars.remove_task(bar)
            measures = [
                f"{heading} {template.format(result['measures'][key])}"
                for key, (heading, template) in trainer.task.measures.items()
            ]
            sampled = f"{result['percent_sam']:.0f} %SAM, {result['seconds']:.1f} s"
            console.print(f"{name}: {', '.join(measures)}, {sampled}")


def _place(folder: Path, method: str, seed: int) -> Path:
    """The folder of a run."""
    return folder / method / f"seed{seed}"


def _warn(options: Options, total_steps: int, console: Console) -> None:
    """Warns if the sampling probability of ARSAM has no time to move."""
    length = options.segment_length
    if "arsam" in options.method and length > 10 and total_steps < 100 * length:
        console.print(
            f"Warning: the sampling probability of ARSAM changes only {total_steps // length} times"
            f" in {total_steps} steps with --segment-length {length}. Use 8 to 10 for a short run."
        )
