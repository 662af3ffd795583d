"""Means with standard errors, and the fraction of SAM's improvement that a method retains."""

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

FLOOR = -100.0  # in %: the least that one task counts in a median or mean over tasks


class Estimate(NamedTuple):
    """A mean and its standard error, which is NaN for a single value."""

    mean: float
    error: float

    def __format__(self, spec: str) -> str:
        if math.isnan(self.mean):
            return "–"
        error = "" if math.isnan(self.error) else f" ± {self.error:{spec.lstrip('+')}}"
        return f"{self.mean:{spec}}{error}"


NOTHING = Estimate(math.nan, math.nan)


def mean_and_error(values: Sequence[float]) -> Estimate:
    """The mean and the standard error of independent values."""
    if not values:
        return NOTHING
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return Estimate(statistics.fmean(values), spread / math.sqrt(len(values)))


def retained(scores: Sequence[float], base: Sequence[float], sam: Sequence[float]) -> Estimate:
    r"""The fraction of SAM's improvement over the base optimizer that is retained, in %.

    The runs are paired by seed. With d_i = score_i − base_i and D_i = sam_i − base_i the fraction
    is F = mean(d) / mean(D), a ratio of means, because the D_i of a single seed can be close to 0.
    Its standard error is that of the mean of the residuals d_i − F D_i, divided by mean(D) (the
    delta method). It therefore includes the noise of the base optimizer and of SAM.
    """
    gained = [a - b for a, b in zip(scores, base, strict=True)]
    whole = [a - b for a, b in zip(sam, base, strict=True)]
    scale = statistics.fmean(whole)
    if scale == 0:
        return NOTHING
    fraction = statistics.fmean(gained) / scale
    residuals = [d - fraction * D for d, D in zip(gained, whole, strict=True)]
    return Estimate(100 * fraction, 100 * mean_and_error(residuals).error / abs(scale))


def floored(estimates: Sequence[Estimate]) -> list[float]:
    """The means, each at least ``FLOOR``. A run that diverged (NaN) counts as ``FLOOR``.

    Otherwise a method that fails on a task would count the more, the smaller SAM's improvement is.
    """
    return [x.mean if x.mean > FLOOR else FLOOR for x in estimates]


def sign_flip(values: Sequence[float]) -> float:
    """The exact one-sided p-value that the mean is below 0, over all patterns of signs."""
    sums = [
        sum(sign * abs(value) for sign, value in zip(signs, values, strict=True))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    limit = sum(values) + 1e-12 * sum(map(abs, values))
    return statistics.fmean(x <= limit for x in sums)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, corrected for all of them."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def at_loss(losses: Any, values: Any, loss: float) -> float:
    """The value at a loss, between two neighbouring points of a trajectory, taken from its end.

    A loss that the trajectory does not pass has the value of the nearest point.
    """
    for i in range(len(losses) - 2, -1, -1):
        (first, second), (start, end) = losses[i : i + 2], values[i : i + 2]
        if min(first, second) <= loss <= max(first, second):
            share = 0.0 if first == second else (loss - first) / (second - first)
            return float(start + share * (end - start))
    return float(values[min(range(len(losses)), key=lambda i: abs(losses[i] - loss))])
