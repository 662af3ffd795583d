"""What the PSF of a mini-batch is: how much of it other mini-batches share, how soon that is out of
date, and how it grows with the radius.

Along trainings with SAM, at parameters that are held still, the gradient g and the PSF ∇L(w + m ρ
g/‖g‖) − g of many independent mini-batches are taken. What mini-batches have in common is the mean
μ: it adds up over the steps of a training; the rest, the noise, averages out. With x_i and y_i
those of n mini-batches,

    (⟨Σ x_i, Σ y_i⟩ − Σ ⟨x_i, y_i⟩) / (n (n − 1))

estimates ⟨E x, E y⟩ without bias. Reported are:

- common: ‖μ‖² / E‖x‖², which is also the coefficient of the regression of the PSF of one
  mini-batch on that of another;
- force: ⟨μ at m ρ, μ at ρ⟩ / ‖μ at ρ‖², how much of SAM's mean force a PSF from further away has;
- noise: √(E‖x‖² − ‖μ‖²), in units of that of the PSF at ρ;
- kept: the cosine of μ with that after some more steps of training; where μ is small, noise can
  take it above 1.

The seeds serve nothing else, the settings are those that benchmarks.frontier found for SAM, the
test set is not read. The whole takes half an hour on one core; a training that is done is not done
again.
"""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Annotated, Any

import rich
import tyro
from rich.progress import Progress

from benchmarks.harness import search, table, tuning
from benchmarks.harness.workloads import WORKLOADS
from benchmarks.psf import report, study


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    workloads: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAMES")] = tuple(WORKLOADS)
    seeds: tuple[int, ...] = (300, 301, 302, 303)
    batches: int = 256
    """Mini-batches of each measurement."""
    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = table.RESULTS / "psf" / "psf.csv"
    """Results; figure and tables are written beside it."""
    settings: Annotated[Path, tyro.conf.arg(metavar="FILE")] = (
        table.RESULTS / "frontier" / "frontier.csv"
    )
    """Where the search for SAM's settings is."""

    def __post_init__(self):
        search.check_names(self, workloads=WORKLOADS)
        if self.batches < 2:
            raise SystemExit("--batches must be at least 2")


def read_rows(path: Path) -> dict[tuple, dict[str, Any]]:
    """By what identifies them: those of a training that was interrupted are replaced."""
    names = ("workload", "seed", "batches", "progress", "multiplier")
    return {
        tuple(row[name] for name in names): row for row in table.read_table(path, ("workload",))
    }


def main(options: Options) -> None:
    rows = read_rows(options.csv)
    settings = tuning.settings_of_sam(options.workloads, options.settings)
    measured = list(itertools.product(study.PROGRESS, (0, *study.MULTIPLIERS)))
    points = len(study.PROGRESS) * (1 + len(study.LAGS))
    with Progress() as progress:
        for name, seed in itertools.product(options.workloads, options.seeds):
            if all((name, seed, options.batches, *point) in rows for point in measured):
                continue
            task = progress.add_task(f"{name}, seed {seed}", total=points)
            on_point = functools.partial(progress.advance, task)
            for row in study.measure(name, settings[name], seed, options.batches, on_point):
                table.append_row(options.csv, row)
    of_size = [x for x in read_rows(options.csv).values() if x["batches"] == options.batches]
    for path in report.write(of_size, options.csv):
        rich.print(f"wrote {path}")


if __name__ == "__main__":
    search.command_line(main, Options, __doc__)
