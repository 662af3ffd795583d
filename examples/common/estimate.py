"""How long the rest of a comparison takes, judging by what has been compiled and trained so far."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

Run = Hashable
"""What is compiled once, and as fast whenever it is trained: a method."""


class Estimate:
    """The seconds that are left.

    A method is as fast as its steps so far, evaluations included; one that has not begun, like the
    others in gradients a second. Compilation counts by the gradients in the program.

    Args:
      runs: to be trained, in this order.
      programs: of each run, the gradients in what is compiled.
      costs: of each run, what a step costs, in gradients.
    """

    def __init__(
        self,
        total_steps: int,
        runs: Sequence[Run],
        programs: Mapping[Any, float],
        costs: Mapping[Any, float],
        *,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.runs = list(runs)
        """Those that are not finished."""
        self._total_steps, self._clock = total_steps, clock
        self._programs, self._costs = programs, costs
        self._compiling: dict[Run, float] = {}
        self._step_seconds: dict[Run, float] = {}
        self._around: list[float] = []  # seconds of each run besides those steps
        self._marks: list[tuple[int, float]] = []
        self.gradients = self.gradients_left()
        """In all, of what is to be trained."""

    def compiled(self, run: Run, seconds: float) -> None:
        self._compiling[run] = seconds

    def start_run(self) -> None:
        """The next of the runs, which is compiled, starts now."""
        self._started, self._marks = self._clock(), []

    def reach(self, step: int) -> None:
        """The run is at this step; the first call is before it takes any.

        The steps up to the second call are not typical: what else is to be compiled is, then.
        """
        self._marks.append((step, self._clock()))
        if len(self._marks) > 2:
            (first, started), (last, now) = self._marks[1], self._marks[-1]
            self._step_seconds[self.runs[0]] = (now - started) / (last - first)

    def end_run(self) -> None:
        run, seconds = self.runs[0], self._clock() - self._started
        steps = self._marks[-1][0] - self._marks[0][0]
        if steps:
            of_step = self._step_seconds.setdefault(run, seconds / steps)
            self._around.append(max(0.0, seconds - steps * of_step))
        self._marks = []
        del self.runs[0]

    def gradients_left(self) -> float:
        costs = [self._costs[run] for run in self.runs]
        return self._total_steps * sum(costs) - (
            self._marks[-1][0] * costs[0] if self._marks else 0
        )

    def seconds_left(self) -> float | None:
        """None before any step has been timed."""
        if not self._step_seconds:
            return None
        of_gradient = _mean_ratio(self._step_seconds, self._costs)
        of_compiling = _mean_ratio(self._compiling, self._programs)
        of_step = {run: of_gradient * self._costs[run] for run in self.runs} | self._step_seconds
        left = [self._total_steps * of_step[run] for run in self.runs]
        if self._marks:
            left[0] *= 1 - self._marks[-1][0] / self._total_steps
        to_compile = set(self.runs) - self._compiling.keys()
        return (
            sum(left)
            + len(left) * float(np.median(self._around or [0.0]))
            + of_compiling * sum(self._programs[run] for run in to_compile)
        )

    def text(self) -> str:
        """What to say of it; nothing where there is none left, or none is known."""
        seconds = self.seconds_left()
        return f"about {duration(seconds)} left" if self.runs and seconds is not None else ""


def _mean_ratio(seconds: dict[Run, float], gradients: Mapping[Any, float]) -> float:
    return float(np.mean([value / gradients[run] for run, value in seconds.items()] or [0.0]))


def duration(seconds: float) -> str:
    """As a reader wants it, without false precision."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 10 else f"{hours + minutes / 60:.0f} h"
