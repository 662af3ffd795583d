"""Tables and figure of ``benchmarks.radius_law``: the best radius against the share of samples."""

import functools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.frontier.report import Estimate, gap_closed, markdown_table, mean_of

Rule = Callable[[float], float]  # m of s
RULES: dict[str, Rule] = {
    "s^0": lambda s: 1,
    "s^(−1/2)": lambda s: s ** (-1 / 2),
    "s^(−0.6)": lambda s: s**-0.6,
    "s^(−2/3)": lambda s: s ** (-2 / 3),
    "s^(−1)": lambda s: 1 / s,
    "min(s^(−2/3), 4)": lambda s: min(s ** (-2 / 3), 4),  # this one was thought of afterwards
}
BASE_BOUND = 0.1  # κ
NOTHING = Estimate(math.nan, math.nan)


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


def jackknife(statistic: Callable[[Sequence], float], items: Sequence) -> Estimate:
    """Of all items, with the standard error that leaving each out once gives."""
    n = len(items)
    left_out = [statistic([*items[:i], *items[i + 1 :]]) for i in range(n if n > 1 else 0)]
    error = math.sqrt(n - 1) * float(np.std(left_out)) if n > 1 else math.nan
    return Estimate(statistic(items), error)


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
    means = [e.mean for e in estimates if not math.isnan(e.mean)]
    error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan
    return Estimate(statistics.fmean(means) if means else math.nan, error)


class Study:
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


def mean_regret(studies: Sequence[Study], shares: Sequence[float], rule: Rule, of_best: bool):
    """Over workloads and shares, each at most 100 %; nothing if one was not tried that far."""
    regrets = [[study.regret(share, rule, of_best) for share in shares] for study in studies]
    if any(math.isnan(x.mean) for row in regrets for x in row):
        return NOTHING
    kept = mean_of([mean_of([Estimate(-x.mean, x.error) for x in row]) for row in regrets])
    return Estimate(-kept.mean, kept.error)


def best_exponent(studies: Sequence[Study], shares: Sequence[float], of_best: bool) -> Estimate:
    """e of the least mean regret of s^(−e); the error is the jackknife's over workloads."""
    tried = np.arange(0.35, 1.091, 0.02)

    def least(studies):
        rules = [functools.partial(power, e=-e) for e in tried]
        regrets = [mean_regret(studies, shares, rule, of_best).mean for rule in rules]
        return math.nan if any(map(math.isnan, regrets)) else float(tried[np.argmin(regrets)])

    return jackknife(least, studies)


def power(s: float, e: float) -> float:
    return s**e


def write(
    studies: Mapping[tuple[str, str], Study],
    kappa: Mapping[tuple, Curve],
    rules: Mapping[tuple, Curve],
    csv: Path,
):
    """The tables as Markdown and the figure, beside the CSV file. `studies`: variant, workload."""
    groups = defaultdict(dict)
    for (variant, workload), study in studies.items():
        groups[variant][workload] = study
    if not groups:
        return []
    figure, markdown = csv.with_suffix(".png"), csv.with_suffix(".md")
    plot(groups, figure)
    parts = [
        "# The radius of `budgeted_sam` against the share of sampled steps\n",
        f"![Accuracy against the radius, and the best radius]({figure.name})\n",
        "Best multiplier m of SAM's ρ, × ÷ its standard error (jackknife over seeds); in brackets"
        " what was tried within one standard error of the best.\n",
        _bests(groups),
        "What of SAM's gain at its own best radius is kept there, in %.\n",
        _kept(groups),
        "Exponent e of m = s^(−e), ± its standard error (the larger of that of the fit and that of"
        " the jackknife over seeds), and over workloads of their mean."
        " From ρ: m is 1 at s = 1. From the best ρ: it is there what suits SAM in this variant."
        " Free: the value at s = 1 is fitted. In the rows of least regret, the e that loses least"
        " over all shares and workloads, ± its jackknife over workloads.\n",
        _exponents(groups),
        "What a rule for m loses against the best m, in % of the gap from SGD to SAM, mean over"
        " workloads, each at most 100. The rule multiplies ρ, or the best ρ of SAM in this variant."
        " A dash: not tried that far.\n",
        _regrets(groups),
        "The same by workload, mean over the shares.\n",
        _regrets_by_workload(groups),
    ]
    if kappa:
        parts += [
            "Gap closed in % with another κ, by m: the second of a row is next to s^(−2/3).\n",
            _kappas(groups, kappa),
        ]
    if rules:
        parts += [
            "Gap closed in % at s = 1/16 by rules for m and κ: m = min(s^(−2/3), 4), s^(−0.6) and"
            " s^(−2/3).\n",
            _rules(groups, rules),
        ]
    markdown.write_text("\n".join(parts))
    return [figure, markdown]


def _bests(groups) -> str:
    shares = sorted({s for g in groups.values() for x in g.values() for s in x.bests}, reverse=True)
    body = []
    for variant, group in groups.items():
        for workload, study in group.items():
            cells = ["–"] * len(shares)
            for share, top in study.bests.items():
                low, high = equally_good(study.curves[share])
                cells[shares.index(share)] = (
                    f"{math.exp(top.mean):.2f} ×÷ {math.exp(top.error):.2f} [{low:.2g}, {high:.2g}]"
                )
            body.append([variant, workload, *cells])
    return markdown_table(["variant", "workload", *(f"s = {s:.3g}" for s in shares)], body)


def _kept(groups) -> str:
    shares = sorted(
        {s for g in groups.values() for x in g.values() for s in x.shares}, reverse=True
    )
    body = [
        [variant, workload, *(f"{study.kept(s):.0f}" if s in study.shares else "–" for s in shares)]
        for variant, group in groups.items()
        for workload, study in group.items()
    ]
    return markdown_table(["variant", "workload", *(f"s = {s:.3g}" for s in shares)], body)


def _exponents(groups) -> str:
    names, body = ("from ρ", "from the best ρ", "free"), []
    for variant, group in groups.items():
        found = {workload: study.exponents() for workload, study in group.items()}
        body += [[variant, w, *(f"{e[n]:.2f}" for n in names)] for w, e in found.items()]
        means = [over_workloads([e[name] for e in found.values()]) for name in names]
        body.append([variant, "**mean**", *(f"**{mean:.2f}**" for mean in means)])
        studies, shares = list(group.values()), _shares(group)
        least = [best_exponent(studies, shares, of_best) for of_best in (False, True)]
        body.append([variant, "least regret", *(f"{e:.2f}" for e in least), "–"])
    return markdown_table(["variant", "workload", *names], body)


def _shares(group: Mapping[str, Study]) -> list[float]:
    """Those that all have."""
    first, *others = group.values()
    return [share for share in first.shares if all(share in other.shares for other in others)]


def _regrets(groups) -> str:
    body = []
    for variant, group in groups.items():
        shares = _shares(group)
        for of_best in (False, True):
            rows = {f"{share:.3g}": [share] for share in shares} | {"**mean**": shares}
            for name, chosen in rows.items():
                body.append([variant, name, *_losses(list(group.values()), chosen, of_best)])
    return markdown_table(["variant", "share", "times", *RULES], body)


def _regrets_by_workload(groups) -> str:
    body = [
        [variant, workload, *_losses([study], study.shares, of_best)]
        for variant, group in groups.items()
        for of_best in (False, True)
        for workload, study in group.items()
    ]
    return markdown_table(["variant", "workload", "times", *RULES], body)


def _losses(studies, shares, of_best) -> list[str]:
    regrets = (mean_regret(studies, shares, rule, of_best) for rule in RULES.values())
    return ["best ρ" if of_best else "ρ", *(f"{regret:.0f}" for regret in regrets)]


def _kappas(groups, kappa) -> str:
    """`kappa`: a curve, of the first seeds of base, by κ, workload and share."""
    points = {}  # share -> the multipliers of the longest curve
    for (_, _, share), curve in kappa.items():
        points[share] = max(points.get(share, ()), [*curve.multipliers], key=len)
    body = []
    for share, multipliers in sorted(points.items(), reverse=True):
        for bound in sorted({bound for bound, _, _ in kappa} | {BASE_BOUND}):
            rows = []
            for workload in dict.fromkeys(workload for _, workload, s in kappa if s == share):
                study = groups["base"][workload]
                n = min(len(c.accuracy) for (_, w, _), c in kappa.items() if w == workload)
                at_base = study.curves.get(share) if bound == BASE_BOUND else None
                curve = kappa.get((bound, workload, share), at_base)
                if curve is None:
                    continue
                gaps = [study.gap(curve.at(m)[:n]) for m in multipliers]
                rows.append(gaps)
                cells = [
                    "–" if math.isnan(gap.mean) else f"{m:.2g}: {gap:.0f}"
                    for m, gap in zip(multipliers, gaps, strict=True)
                ]
                body.append([f"{share:.3g}", workload, f"{bound:g}", *cells])
            means = [f"{mean_of(column):.0f}" for column in zip(*rows, strict=True)]
            body.append([f"{share:.3g}", "**mean**", f"{bound:g}", *means])
    return markdown_table(["share", "workload", "κ", "m and gap", *3 * [""]], body)


def _rules(groups, rules) -> str:
    """`rules`: a curve by κ, workload and share; its multipliers are the rules."""
    workloads = list(dict.fromkeys(workload for _, workload, _ in rules))
    body = []
    for bound in sorted({bound for bound, _, _ in rules}):
        curves = {w: curve for (b, w, _), curve in rules.items() if b == bound}
        for m in next(iter(curves.values())).multipliers:
            gaps = {w: groups["base"][w].gap(curve.at(m)) for w, curve in curves.items()}
            cells = [f"{gaps[w]:.0f}" if w in gaps else "–" for w in workloads]
            body.append([f"{bound:g}", f"{m:.2f}", f"{mean_of(list(gaps.values())):.0f}", *cells])
    return markdown_table(["κ", "m", "mean", *workloads], body)


def plot(groups, path: Path) -> None:
    """A panel of accuracies for each workload of base, and one of best radii for each variant."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    base = groups.get("base", {})
    count = len(base) + len(groups)
    rows, columns = math.ceil(count / 4), min(count, 4)
    size = (4.6 * columns, 4 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    axes = list(grid.flat)
    for axis, (workload, study) in zip(axes, base.items(), strict=False):
        for i, (share, curve) in enumerate(study.curves.items()):
            if share == 0:
                axis.axhline(statistics.fmean(study.sgd), color="0.5", label="SGD")
                continue
            mean = curve.accuracy.mean(0)
            error = curve.accuracy.std(0, ddof=1) / math.sqrt(len(curve.accuracy))
            unit = share ** (-2 / 3)
            style = {"color": "0.2" if share == 1 else f"C{i}", "capsize": 2}
            label = "SAM" if share == 1 else f"s = {share:.3g}"
            axis.errorbar(curve.multipliers / unit, mean, error, label=label, **style)
            for marker, e in zip("vo^", (1 / 2, 2 / 3, 1), strict=True):
                if share < 1:
                    y = statistics.fmean(curve.at(share**-e))
                    axis.plot(share**-e / unit, y, marker, color=style["color"])
        gap = statistics.fmean(study.sam) - statistics.fmean(study.sgd)
        axis.set_ylim(statistics.fmean(study.sgd) - gap / 2, statistics.fmean(study.sam) + gap / 2)
        axis.set(title=workload, xscale="log", xlabel="m / s^(−2/3)", ylabel="accuracy, %")
        axis.set_xticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"], minor=False)
        axis.set_xticks([], minor=True)
    if base:
        axes[0].legend(fontsize=7, title="▼ s^(−1/2)  ● s^(−2/3)  ▲ s^(−1)", title_fontsize=7)
    for axis, (variant, group) in zip(axes[len(base) :], groups.items(), strict=False):
        for i, (workload, study) in enumerate(group.items()):
            tops = np.exp([top.mean for top in study.bests.values()])
            factors = np.exp([top.error for top in study.bests.values()])
            errors = [tops - tops / factors, tops * factors - tops]
            shares = np.array(list(study.bests)) * 1.02**i
            axis.errorbar(shares, tops, errors, fmt="o-", label=workload, capsize=2, linewidth=1)
        x = np.array([0.04, 1])
        for style, name in ((":", "s^0"), ("--", "s^(−1/2)"), ("-", "s^(−2/3)"), ("-.", "s^(−1)")):
            axis.plot(x, [RULES[name](s) for s in x], style, color="0.4", label=name)
        axis.set(title=f"best m, {variant}", xscale="log", yscale="log", xlabel="share s")
        axis.set_ylim(0.3, 40)
        axis.legend(fontsize=7)
    for axis in axes[count:]:
        axis.remove()
    figure.savefig(path, dpi=110)
    plt.close(figure)
