"""Tables and figure of the radius law: the best radius against the share of samples."""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.statistics import markdown_table, mean_of
from benchmarks.radius_law.fits import (
    RULES,
    Curve,
    Findings,
    best_exponent,
    equally_good,
    mean_regret,
    over_workloads,
)

BASE_BOUND = 0.1  # κ


def write(
    studies: Mapping[tuple[str, str], Findings],
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


def _shares(group: Mapping[str, Findings]) -> list[float]:
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
    for axis, (workload, findings) in zip(axes, base.items(), strict=False):
        _draw_accuracies(axis, workload, findings)
    if base:
        axes[0].legend(fontsize=7, title="▼ s^(−1/2)  ● s^(−2/3)  ▲ s^(−1)", title_fontsize=7)
    for axis, (variant, group) in zip(axes[len(base) :], groups.items(), strict=False):
        _draw_radii(axis, variant, group)
    for axis in axes[count:]:
        axis.remove()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_accuracies(axis: Any, workload: str, study: Findings) -> None:
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


def _draw_radii(axis: Any, variant: str, group: Mapping[str, Findings]) -> None:
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
