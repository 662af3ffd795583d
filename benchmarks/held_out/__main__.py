"""What is left of SAM's gain, and at which price, on trainings on which no method was made.

SGD's learning rate and weight decay are searched, then SAM's and its ρ from there, by doubling and
halving until no neighbour is better, the learning rate at last by √2, on held-out training examples
and on seeds that serve nothing else. So the zero is the best SGD found. Every other method takes
SAM's setting over, some without its ρ, and meets the trainings where SAM gains. The test set is
read once, by the reporting seeds.

Every finished run is a line of a CSV file at once, and is never done again: a run that was
interrupted is resumed by the same command. `--methods sgd sam` tunes and runs these two alone.
"""

import dataclasses

import rich

from benchmarks.harness import search
from benchmarks.held_out import report, study
from benchmarks.held_out.study import Options
from benchmarks.held_out.workloads import WORKLOADS


def main(options: Options) -> None:
    starts = {name: WORKLOADS[name].setting._replace(rho=0.0) for name in options.workloads}
    sgd = study.find(options, study.STUDY, "sgd", starts)
    starts = {name: sgd[name]._replace(rho=WORKLOADS[name].setting.rho) for name in sgd}
    sam = study.find(options, study.STUDY, "sam", starts)
    runs = study.reporting_runs(options, study.REFERENCES, sgd, sam)
    gains = report.gains(runs, search.run_all(runs, study.STUDY, options))
    gaining = tuple(name for name in options.workloads if report.is_gain(gains[name]))
    options = dataclasses.replace(options, workloads=gaining)
    others = [name for name in options.methods if name not in study.REFERENCES]
    runs += study.reporting_runs(options, others, sgd, sam)
    done = search.run_all(runs, study.STUDY, options)
    for path in report.write(options, runs, done):
        rich.print(f"wrote {path}")


if __name__ == "__main__":
    search.command_line(main, Options, __doc__)
