"""What SAM and its cheaper kin give to the programs of ``examples``, at settings searched alike.

The learning rate is searched for every method, and ρ for SAM, whose ρ ARSAM and all else have, on
held-out training examples with seeds of their own. Then each method is run with the reporting seeds
and asked what the program asks of it, on the test set.

Every finished run is a line of a CSV file at once, and is never done again: a run that was
interrupted is resumed by the same command.
"""

import itertools

import rich

from benchmarks.applications import report, study
from benchmarks.applications.study import APPLICATIONS, STUDY, Options
from benchmarks.harness import search
from examples.common.comparison import BASE


def main(options: Options) -> None:
    name = options.application
    own_study = STUDY._replace(measure=APPLICATIONS[name].measures[0])
    start = study.start(name)
    base = study.find(options, own_study, BASE, start._replace(rho=0.0))
    sam = study.find(options, own_study, "sam", start._replace(learning_rate=base.learning_rate))
    settings = {BASE: base, "sam": sam}
    for method in options.methods:
        if method not in settings:
            settings[method] = study.find(options, own_study, method, sam)
    runs = {
        method: study.runs_of(options, "run", method, settings[method], options.seeds)
        for method in options.methods
    }
    done = search.run_all(itertools.chain(*runs.values()), own_study, options.results)
    for path in report.write(options, runs, done):
        rich.print(f"wrote {path}")


if __name__ == "__main__":
    search.command_line(main, Options, __doc__)
