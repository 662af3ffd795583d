"""Compares methods on a task: trains, records, saves and resumes each method with each seed.

A task is a subclass of ``Task`` with a dataclass of options. Its program is::

    if __name__ == "__main__":
        sys.exit(comparison.main(MyOptions, MyTask, "mytask"))
"""

import contextlib
import io
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich import progress
from rich.console import Console

from examples.common import devices
from examples.common.comparison import report
from examples.common.comparison.options import BASE, Options, check_folder, parse
from examples.common.comparison.trainer import RESULT_FILE, Record, Task, Trainer
from examples.common.errors import CheckpointError, ConfigError, DataError, StoppedError
from examples.common.settings import to_dict, write
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
            devices.connect(options.processes)
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
    console = Console(quiet=not devices.is_main(), markup=False, emoji=False, highlight=False)
    places = {
        (method, seed): folder / method / f"seed{seed}"
        for seed in options.seeds
        for method in options.method
    }
    places = {run: place for run, place in places.items() if not (place / RESULT_FILE).exists()}
    devices.require_same("the settings", to_dict(options) | {"processes": ""})
    devices.require_same("the runs that are finished", places)
    if devices.is_main():  # all processes have looked into the folder by now
        folder.mkdir(parents=True, exist_ok=True)
        write(options)
    if task.description:
        console.print(task.description)
    length, steps = options.segment_length, trainer.total_steps
    if "arsam" in options.method and length > 10 and steps < 100 * length:
        console.print(
            f"Warning: the sampling probability of ARSAM changes only {steps // length} times in"
            f" {steps} steps with --segment-length {length}. Use 8 to 10 for a short run."
        )
    if places:
        console.print(f"Training {len(places)} runs of {steps:,} steps")
    with stop_on_signal() as should_stop:
        try:
            _train(trainer, places, console, should_stop)
        except StoppedError as error:
            console.print(f"Saved and stopped: {error}. Continue with:")
            console.print(f"  {options.resume_command(program)}", soft_wrap=True)
            return 128 + (should_stop.signal or 0)
    if devices.is_main():
        report.write(folder, task.measures, console)
    return 0


def _train(
    trainer: Trainer,
    places: Mapping[tuple[str, int], Path],
    console: Console,
    should_stop: Callable[[], bool],
) -> None:
    """Trains the runs and shows how far they are.

    The methods of a seed run one after another, so that a change of the load of the machine does
    not favour one of them.
    """
    is_hidden = not console.is_terminal
    with progress.Progress(console=console, transient=True, disable=is_hidden) as bars:
        bar = bars.add_task("compiling", total=len(places) * trainer.total_steps)
        for number, ((method, seed), place) in enumerate(places.items()):
            name, before = f"{method}, seed {seed}", number * trainer.total_steps
            bars.update(bar, description=f"{name}, compiling", completed=before)

            def show(record: Record, name=name, before=before) -> None:
                loss = f"loss {record.mean_loss(100):.3f}, {record.percent_sam:.0f} %SAM"
                bars.update(bar, description=f"{name}, {loss}", completed=before + record.step)

            result = trainer.train(method, seed, place, show, should_stop)
            measures = [
                f"{heading} {template.format(result['measures'][key])}"
                for key, (heading, template) in trainer.task.measures.items()
            ]
            sampled = f"{result['percent_sam']:.0f} %SAM, {result['seconds']:.1f} s"
            console.print(f"{name}: {', '.join(measures)}, {sampled}")
