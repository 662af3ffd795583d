"""How far ``budgeted_sam`` should look when it samples a share s of the steps.

It looks at ρ s^(−2/3), ρ being the radius that suits SAM, and bounds the reuse by κ = 0.1. Both
were chosen at one share. Here the radius m ρ is searched at each share for the best multiplier m,
on every workload of the frontier (two with BatchNorm, one with LayerNorm, two without), and again
at a lower learning rate and with larger batches, where SAM's own best radius is searched too. m
against s gives the exponent; what each rule loses against the best m says whether it matters.

Learning rate, weight decay and ρ are those the search of ``benchmarks.frontier`` found for SAM. The
seeds serve nothing else and accuracy is on held-out training examples: the test set is not read.

Every finished run is a line of a CSV file at once, and is never done again: a run that was
interrupted is resumed by the same command.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import rich
import tyro

from benchmarks.harness import search, tuning
from benchmarks.harness.table import RESULTS
from benchmarks.harness.workloads import WORKLOADS, Setting
from benchmarks.radius_law import report, study
from benchmarks.radius_law.fits import Findings
from benchmarks.radius_law.study import SWEEPS, VARIANTS


@dataclasses.dataclass(frozen=True)
class Options(search.Options):
    """Options of the benchmark."""

    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = RESULTS / "radius_law" / "radius_law.csv"
    """Results; figure and tables are written beside it."""
    sweep: Literal["radius", "kappa", "rules", "report"] = "radius"
    """What to run; `report` draws what the CSV file has."""
    variants: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAMES")] = tuple(VARIANTS)
    """Of those of the sweep."""
    workloads: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAMES")] = tuple(WORKLOADS)
    settings: Annotated[Path, tyro.conf.arg(metavar="FILE")] = RESULTS / "frontier" / "frontier.csv"
    """Where the search for SAM's setting is; read only."""

    def __post_init__(self):
        super().__post_init__()
        search.check_names(self, variants=VARIANTS, workloads=WORKLOADS)


def main(options: Options) -> None:
    sam = tuning.settings_of_sam(options.workloads, options.settings)
    if options.sweep != "report":
        variants = [name for name in SWEEPS[options.sweep] if name in options.variants]
        study.search_all(variants, sam, study.STUDY, options)
    done = search.read_rows(options.csv, tuning.Run)
    for path in write(sam, done, options.csv):
        rich.print(f"wrote {path}")


def write(sam: dict[str, Setting], done: search.Done, csv: Path) -> list[Path]:
    """The report of the runs that are done, beside the CSV file."""
    curves = {(v, w): study.curves_of(v, w, s, done) for v in VARIANTS for w, s in sam.items()}
    findings = {
        (variant, workload): Findings(found)
        for (variant, workload), found in curves.items()
        if 0 in found and 1 in found and len(found) > 2
    }

    def of_sweep(name):
        return {
            (VARIANTS[variant].bound, workload, share): curve
            for (variant, workload), found in curves.items()
            if variant in SWEEPS[name] and ("base", workload) in findings
            for share, curve in found.items()
        }

    return report.write(findings, of_sweep("kappa"), of_sweep("rules"), csv)


if __name__ == "__main__":
    search.command_line(main, Options, __doc__)
