"""Means with their errors, and tables of them."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

FLOOR = -100.0  # in %: what a collapse on one workload counts for in the mean


class Estimate(NamedTuple):
    """A mean and its standard error (NaN where one seed cannot tell)."""

    mean: float
    error: float

    def __format__(self, spec: str) -> str:
        if math.isnan(self.mean):
            return "–"
        error = "" if math.isnan(self.error) else f" ± {self.error:{spec}}"
        return f"{self.mean:{spec}}{error}"


NOTHING = Estimate(math.nan, math.nan)


def mean_and_std(values: Sequence[float]) -> Estimate:
    """The mean and, in place of its error, the standard deviation."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Estimate(statistics.fmean(values) if values else math.nan, spread)


def mean_and_error(values: Sequence[float]) -> Estimate:
    mean, spread = mean_and_std(values)
    return Estimate(mean, spread / math.sqrt(len(values)) if values else math.nan)


def gap_closed(accuracy: Sequence[float], sgd: Sequence[float], sam: Sequence[float]) -> Estimate:
    r"""The part of SAM's gain over SGD that a method keeps, in %, from runs paired by seed.

    With d_i = accuracy_i − sgd_i and D_i = sam_i − sgd_i of seed i, the gap is G = mean(d) /
    mean(D), a ratio of means, since a ratio of one seed may divide by nearly nothing. Its standard
    error is that of the mean of the residuals d_i − G D_i, divided by mean(D) (the delta method):
    the noise that a seed shares between the three methods, and that of SAM and SGD, is in it.
    """
    kept = [a - b for a, b in zip(accuracy, sgd, strict=True)]
    whole = [a - b for a, b in zip(sam, sgd, strict=True)]
    scale = statistics.fmean(whole)
    if scale == 0:
        return NOTHING
    gap = statistics.fmean(kept) / scale
    residuals = [d - gap * D for d, D in zip(kept, whole, strict=True)]
    return Estimate(100 * gap, 100 * mean_and_error(residuals).error / abs(scale))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, each at least ``FLOOR``, which NaN counts for, too.

    A run that collapsed to chance would else weigh by how small SAM's gain happens to be.
    """
    error = math.sqrt(sum(e.error**2 for e in estimates if e.mean > FLOOR)) / len(estimates)
    means = [e.mean if e.mean > FLOOR else FLOOR for e in estimates]
    return Estimate(statistics.fmean(means), error)


def jackknife(statistic: Callable[[Sequence], float], items: Sequence) -> Estimate:
    """Of all items, with the standard error that leaving each out once gives."""
    n = len(items)
    left_out = [statistic([*items[:i], *items[i + 1 :]]) for i in range(n if n > 1 else 0)]
    error = math.sqrt(n - 1) * float(np.std(left_out)) if n > 1 else math.nan
    return Estimate(statistic(items), error)


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
