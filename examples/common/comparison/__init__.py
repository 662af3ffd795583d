"""Compares methods on a task: trains, records, saves and resumes each of them with each seed.

A task is a class with what ``trainer.Task`` lists. Its program is::

    if __name__ == "__main__":
        sys.exit(comparison.main(MyOptions, MyTask, "mytask"))
"""

import logging
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from rich import progress
from rich.console import Console

from examples.common import methods
from examples.common.comparison import report
from examples.common.comparison.options import BASE, Options, parse
from examples.common.comparison.trainer import RESULT_FILE, Task, Trainer
from examples.common.errors import CheckpointError, ConfigError, DataError, StoppedError
from examples.common.estimate import Estimate
from examples.common.settings import resume_arguments, write
from examples.common.stopping import stop_on_signal

__all__ = ["BASE", "Options", "Task", "Trainer", "main", "parse", "report"]


def main(
    options_type: type[Options],
    make_task: Callable[[Any], Task],
    name: str,
    arguments: Sequence[str] | None = None,
) -> int:
    """Runs the program of a task; returns its exit status."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        options = parse(options_type, name, arguments)
        return _compare(options, make_task(options))
    except (ConfigError, DataError, CheckpointError, OSError) as error:
        console = Console(stderr=True, markup=False, highlight=False)
        console.print(f"error: {error}", style="red", soft_wrap=True)
        return 2


def _compare(options: Options, task: Task) -> int:
    """Trains what is not finished yet, and reports."""
    folder, console = options.folder, Console(highlight=False)
    trainer = Trainer(options, task)
    folder.mkdir(parents=True, exist_ok=True)
    write(options)
    columns = (
        progress.TextColumn("{task.description}"),
        *(progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeRemainingColumn()),
        progress.TextColumn("{task.fields[now]}"),
    )
    runs = [
        (method, seed, place)
        for method in options.method
        for seed in options.seeds
        if not ((place := folder / method / f"seed{seed}") / RESULT_FILE).exists()
    ]
    left = Estimate(
        *(trainer.total_steps, [method for method, _, _ in runs]),
        programs={method: methods.gradients(method) for method in options.method},
        costs={method: methods.step_cost(method, options) for method in options.method},
    )
    with stop_on_signal() as should_stop, progress.Progress(*columns, console=console) as bars:
        for method, seed, place in runs:
            bar = bars.add_task(f"{method}, seed {seed}", total=trainer.total_steps, now="")

            def start(step, method=method, bar=bar):
                bars.update(bar, completed=step)
                left.compiled(method, trainer.compile_seconds[method])
                left.start_run()
                left.reach(step)

            def show(step, loss, percent_sam, method=method, bar=bar):
                text = f"loss {loss:.3f}  {percent_sam:.0f} %SAM"
                bars.update(bar, completed=step, now=text)
                is_first = not left.text()
                left.reach(step)
                if is_first and left.text():
                    console.print(f"{left.text()}, judging by the first steps of {method}")

            try:
                trainer.train(method, seed, place, show, should_stop, start)
            except StoppedError as error:
                bars.stop()
                resume = shlex.join(resume_arguments(options))
                console.print(f"Saved and stopped: {error}. Go on with {resume}.")
                return 128 + (should_stop.signal or 0)
            left.end_run()
            if left.text():
                console.print(f"{method}, seed {seed} is trained; {left.text()}")
    report.write(folder, task.measures, console)
    return 0
