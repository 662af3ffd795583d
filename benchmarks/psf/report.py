"""Tables and figure of the PSF study."""

import math
import statistics
from pathlib import Path
from typing import Any

from benchmarks.harness.statistics import Estimate, markdown_table, mean_and_error
from benchmarks.harness.workloads import WORKLOADS
from benchmarks.psf.study import LAGS, MULTIPLIERS


def estimate(rows: list[dict[str, Any]], column: str) -> Estimate:
    """Mean of trainings and its standard error, from the mean of each over its points.

    Values that noise left undefined are left out.
    """
    of_training: dict[float, list[float]] = {}
    for row in rows:
        if math.isfinite(row[column]):
            of_training.setdefault(row["seed"], []).append(row[column])
    values = [statistics.fmean(points) for points in of_training.values()]
    return mean_and_error(values)


def write(rows: list[dict[str, Any]], path: Path) -> list[Path]:
    """Writes the tables and the figure beside ``path``."""
    measured = {row["workload"] for row in rows}
    workloads = [name for name in WORKLOADS if name in measured]

    def table(column, multipliers, spec=".2f"):
        def cell(workload, multiplier):
            chosen = [r for r in rows if (r["workload"], r["multiplier"]) == (workload, multiplier)]
            return f"{estimate(chosen, column):{spec}}"

        header = ["workload", *(f"PSF at {m:.3g} ρ" if m else "gradient" for m in multipliers)]
        body = [[f"`{w}`", *(cell(w, m) for m in multipliers)] for w in workloads]
        return markdown_table(header, body)

    markdown, figure = path.with_suffix(".md"), path.with_suffix(".png")
    parts = [
        "# The PSF of a mini-batch\n",
        "Along trainings with SAM: mean over five points of each, ± its standard error over the"
        " trainings. What is estimated, and how, `python -m benchmarks.psf --help` says.\n",
        f"![common part and force]({figure.name})\n",
        "Norm, in units of the gradient's (root mean squares).\n",
        table("norm", MULTIPLIERS),
        "Common: the part of E‖x‖² that mini-batches share.\n",
        table("common", (0, *MULTIPLIERS), ".3f"),
        "Force: what the mean PSF has of that at ρ.\n",
        table("force", MULTIPLIERS),
        "Noise: what is not shared, in units of that of the PSF at ρ.\n",
        table("noise", MULTIPLIERS),
    ]
    for lag in LAGS:
        parts.append(f"Kept: the cosine of the mean with that {lag} steps of training later.\n")
        parts.append(table(f"kept_{lag}", (0, *MULTIPLIERS)))
    markdown.write_text("\n".join(parts))
    plot(rows, workloads, figure)
    return [markdown, figure]


def plot(rows: list[dict[str, Any]], workloads: list[str], path: Path) -> None:
    """The common part along the training, and the force against the radius."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")

    def means(workload, column, by, **fixed):
        chosen = [row for row in rows if row.items() >= ({"workload": workload} | fixed).items()]
        places = [x for x in dict.fromkeys(row[by] for row in chosen) if x]
        found = [estimate([row for row in chosen if row[by] == x], column) for x in places]
        return places, [e.mean for e in found], [e.error for e in found]

    for i, workload in enumerate(workloads):
        color = f"C{i}"
        x, mean, error = means(workload, "common", "progress", multiplier=1)
        left.errorbar(x, mean, error, color=color, marker="o", capsize=2, label=workload)
        x, mean, error = means(workload, "force", "multiplier")
        right.errorbar(x, mean, error, color=color, marker="o", capsize=2)
    left.axhline(0, color="0.6", linewidth=0.8)
    left.set_xlabel("part of the training done")
    left.set_ylabel("part of a PSF that mini-batches share")
    left.legend(frameon=False)
    right.plot(MULTIPLIERS, MULTIPLIERS, color="0.6", linestyle="--", label="in proportion")
    right.set_xscale("log", base=2)
    right.set_yscale("log", base=2)
    right.set_xlabel("radius, in units of SAM's")
    right.set_ylabel("mean force of the PSF, in units of that at ρ")
    right.legend(frameon=False)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=130)
    plt.close(figure)
