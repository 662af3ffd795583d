"""What peers keep of SAM's gain with the dials that their authors turn, and when to sample.

On the trainings of `benchmarks.held_out` where SAM gains, at SAM's setting there. A peer's dial,
and of some its ρ, is searched for each training, on held-out training examples and the seeds of
that search. The test set is read once, by the reporting seeds.

Every finished run is a line of a CSV file at once, and is never done again: a run that was
interrupted is resumed by the same command. `benchmarks.held_out` comes first.
"""

import dataclasses

import rich

from benchmarks.harness import search
from benchmarks.harness.tuning import Run
from benchmarks.held_out.study import REFERENCES
from benchmarks.peers import report, study
from benchmarks.peers.study import Options


def main(options: Options) -> None:
    methods = dict.fromkeys([*REFERENCES, *options.methods])
    options = dataclasses.replace(options, methods=tuple(methods))
    chosen = study.find(options, **study.settings_where_sam_gains(options.settings))
    runs = [
        Run("run", *key, dial, seed, *setting)
        for key, (dial, setting) in chosen.items()
        for seed in options.seeds
    ]
    done = search.run_all(runs, study.STUDY, options)
    for path in report.write(options, runs, done):
        rich.print(f"wrote {path}")


if __name__ == "__main__":
    search.command_line(main, Options, __doc__)
