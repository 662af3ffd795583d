"""Accuracy under symmetric label noise: the shape of table 5 of arXiv 2510.03763, on a CPU.

Protocol. For each data set, one search at 40 % noise: SGD and SAM get the same quasi-random draws
of learning rate and weight decay (and ρ, for SAM), and ARSAM's α and segment length are searched at
SAM's best. The score is the accuracy, after the last epoch, on a fifth of the training set that is
held out and has clean labels, on tuning seeds. All methods then train at each noise rate with SAM's
settings, SGD also with its own, on reporting seeds, which alone read the test set. As a control,
the search of SGD and SAM is repeated at 80 % noise, and what it finds is trained there.

A run is a line of a CSV file as soon as it is finished, and is never done again: the same command
goes on where it was interrupted.
"""

import dataclasses
from pathlib import Path

import rich

from benchmarks.harness import search
from benchmarks.label_noise import report
from benchmarks.label_noise.study import (
    SEARCHES,
    STUDY,
    VARIANTS,
    Options,
    Run,
    reporting_runs,
    tried,
    tuning_runs,
)


def quick(options: Options) -> Options:
    file = Path("runs") / "label_noise" / "quick.csv"
    few = {"rates": options.rates[:2], "seeds": options.seeds[:2], "draws": 2, "epochs": 2}
    return dataclasses.replace(options, **few, csv=file)


def main(options: Options) -> None:
    if options.quick:
        options = quick(options)
    done = search.read_rows(options.csv, Run)
    if options.stage != "report":
        for searches in ([name for name in SEARCHES if name != "arsam"], ["arsam"]):
            runs = [
                run
                for dataset in options.datasets
                for name in searches
                for setting in tried(options, dataset, name, done)
                for run in tuning_runs(options, dataset, name, setting)
            ]
            done = search.run_all(runs, STUDY, options)
    if options.stage == "run":
        runs = [
            run
            for dataset in options.datasets
            for name in VARIANTS
            for run in reporting_runs(options, dataset, name, done)
        ]
        done = search.run_all(runs, STUDY, options)
    if options.stage != "tune":
        for path in report.write(options, done):
            rich.print(f"wrote {path}")


if __name__ == "__main__":
    search.command_line(main, Options, __doc__)
