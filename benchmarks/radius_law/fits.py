"""The best radius of a curve, the law that the best radii follow, and what a rule loses."""

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.harness.statistics import (
    NOTHING,
    Estimate,
    gap_closed,
    jackknife,
    mean_and_error,
    mean_of,
)

Rule = Callable[[float], float]  # m of s
RULES: dict[str, Rule] = {
    "s^0": lambda s: 1,
    "s^(−1/2)": lambda s: s ** (-1 / 2),
    "s^(−0.6)": lambda s: s**-0.6,
    "s^(−2/3)": lambda s: s ** (-2 / 3),
    "s^(−1)": lambda s: 1 / s,
    "min(s^(−2/3), 4)": lambda s: min(s ** (-2 / 3), 4),  # this one was thought of afterwards
}


class Curve(NamedTuple):
    """Accuracies in % of one workload, variant and share: (seeds, multipliers)."""

    multipliers: np.ndarray
    accuracy: np.ndarray

    def at(self, multiplier: float) -> list[float]:
        """Of each seed, linear in log m; NaN outside of the grid."""
        x = np.log(self.multipliers)
        inside = x[0] - 1e-6 <= math.log(multiplier) <= x[-1] + 1e-6
        return [
            np.interp(math.log(multiplier), x, y) if inside else math.nan for y in self.accuracy
        ]


Curves = Mapping[float, Curve]  # of one workload and variant; 0 is SGD and 1 SAM


def best(curve: Curve, floor: float) -> float:
    """The multiplier at the top of a parabola in log m through the best point and its neighbours.

    Two neighbours on each side, the top no further from the best point than half way to the next.
    What is below half way from `floor`, SGD's accuracy, to the best counts as half way: how deep a
    collapse is says nothing about where the top is. Accuracy rises slowly and falls fast, so the
    top found is about 10 % low at every share.
    """
    mean = curve.accuracy.mean(0)
    top = int(mean.argmax())
    mean = mean.clip((floor + mean[top]) / 2)
    part = slice(max(0, top - 2), top + 3)
    x = np.log(curve.multipliers)
    a, b, _ = np.polyfit(x[part], mean[part], 2)
    if a >= 0:
        return float(curve.multipliers[top])
    low, high = ((x[top] + x[max(0, min(i, len(x) - 1))]) / 2 for i in (top - 1, top + 1))
    return float(np.exp(np.clip(-b / (2 * a), low, high)))


def best_with_error(curve: Curve, floor: float) -> Estimate:
    """log of the best multiplier; the standard error is the jackknife's over seeds."""

    def top(rows):
        return math.log(best(Curve(curve.multipliers, np.array(rows)), floor))

    return jackknife(top, list(curve.accuracy))


def equally_good(curve: Curve) -> tuple[float, float]:
    """The range of tried multipliers within one standard error, paired by seed, of the best."""
    lost = curve.accuracy[:, [curve.accuracy.mean(0).argmax()]] - curve.accuracy
    error = lost.std(0, ddof=1) / math.sqrt(len(lost)) if len(lost) > 1 else np.zeros(lost.shape[1])
    found = curve.multipliers[lost.mean(0) <= error]
    return float(found.min()), float(found.max())


def exponent(bests: Mapping[float, float], origin: float | None) -> Estimate:
    """e of m = origin · s^(−e), or with the origin fitted too; the error is that of residuals."""
    x, y = -np.log([*bests]), np.log([*bests.values()])
    if origin is None:
        x, y = x - x.mean(), y - y.mean()
    else:
        y = y - math.log(origin)
    e = float(x @ y / (x @ x))
    free = len(x) - (2 if origin is None else 1)
    residuals = y - e * x
    error = math.sqrt(residuals @ residuals / free / (x @ x)) if free > 0 else math.nan
    return Estimate(e, error)


def exponents(curves: Curves) -> dict[str, Estimate]:
    """From ρ: the origin is m = 1. From the best ρ: it is SAM's own m. Free: it is fitted."""
    floor = statistics.fmean(curves[0].at(1))
    bests = {share: best(curve, floor) for share, curve in curves.items() if share > 0}
    below = {share: top for share, top in bests.items() if share < 1}
    return {
        "from ρ": exponent(below, 1),
        "from the best ρ": exponent(below, bests[1]),
        "free": exponent(bests, None),
    }


def over_workloads(estimates: Sequence[Estimate]) -> Estimate:
    """Mean, and the standard error that the spread between workloads gives."""
    return mean_and_error([e.mean for e in estimates if not math.isnan(e.mean)])


class Findings:
    """What one workload and variant say."""

    def __init__(self, curves: Curves):
        self.curves = curves
        self.sgd = curves[0].at(1)
        floor = statistics.fmean(self.sgd)
        self.bests = {s: best_with_error(c, floor) for s, c in curves.items() if s > 0}
        self.shares = [s for s in self.bests if s < 1]
        self.sam_best = math.exp(self.bests[1].mean)
        self.sam = curves[1].at(self.sam_best)

    def exponents(self) -> dict[str, Estimate]:
        """With the larger of two errors: of the residuals, and of the jackknife over seeds.

        The one misses what all shares take from SAM's best radius, the other is rough with two or
        three seeds, and knows of no law that is not a power.
        """

        def of_seeds(name, seeds):
            some = {s: c._replace(accuracy=c.accuracy[[*seeds]]) for s, c in self.curves.items()}
            return exponents(some)[name].mean

        def with_error(name, fit):
            seeds = range(len(self.sgd))
            over_seeds = jackknife(functools.partial(of_seeds, name), seeds)
            return Estimate(fit.mean, float(np.fmax(fit.error, over_seeds.error)))

        return {name: with_error(name, fit) for name, fit in exponents(self.curves).items()}

    def gap(self, accuracy: Sequence[float]) -> Estimate:
        """Closed by accuracies of the first seeds; nothing where these are not known."""
        n = len(accuracy)
        if math.isnan(accuracy[0]):
            return NOTHING
        return gap_closed(accuracy, self.sgd[:n], self.sam[:n])

    def kept(self, share: float) -> Estimate:
        return self.gap(self.curves[share].at(math.exp(self.bests[share].mean)))

    def regret(self, share: float, rule: Rule, of_best: bool) -> Estimate:
        """What a rule for m loses against the best m, in % of the gap from SGD to SAM.

        `of_best`: the rule multiplies SAM's best radius in this variant in place of ρ.
        """
        curve = self.curves[share]
        top = curve.at(math.exp(self.bests[share].mean))
        chosen = curve.at(rule(share) * (self.sam_best if of_best else 1))
        return self.gap([sgd + a - b for sgd, a, b in zip(self.sgd, top, chosen, strict=True)])


def mean_regret(studies: Sequence[Findings], shares: Sequence[float], rule: Rule, of_best: bool):
    """Over workloads and shares, each at most 100 %; nothing if one was not tried that far."""
    regrets = [[study.regret(share, rule, of_best) for share in shares] for study in studies]
    if any(math.isnan(x.mean) for row in regrets for x in row):
        return NOTHING
    kept = mean_of([mean_of([Estimate(-x.mean, x.error) for x in row]) for row in regrets])
    return Estimate(-kept.mean, kept.error)


def best_exponent(studies: Sequence[Findings], shares: Sequence[float], of_best: bool) -> Estimate:
    """e of the least mean regret of s^(−e); the error is the jackknife's over workloads."""
    tried = np.arange(0.35, 1.091, 0.02)

    def least(studies):
        rules = [functools.partial(power, e=-e) for e in tried]
        regrets = [mean_regret(studies, shares, rule, of_best).mean for rule in rules]
        return math.nan if any(map(math.isnan, regrets)) else float(tried[np.argmin(regrets)])

    return jackknife(least, studies)


def power(s: float, e: float) -> float:
    return s**e
