"""Means with standard errors, and the fraction of SAM's improvement that a method retains."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

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
