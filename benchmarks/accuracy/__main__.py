"""How accurate is each method, and at which cost?

The learning rate and weight decay of the base optimizer are searched on each task, then those of
SAM with its ρ from there, by doubling and halving until no neighbour is better. The search uses
held-out training examples and separate seeds. All other methods take over SAM's setting and run
on the tasks on which SAM improves the score. The test set is read once, by the reported runs.

Every finished run is written to the CSV file at once and is never repeated: the same command
continues after an interruption.
"""

import functools
from collections import defaultdict
from pathlib import Path

import rich

from benchmarks import search
from benchmarks.accuracy import report, study
from benchmarks.accuracy.study import REFERENCES, Options
from benchmarks.accuracy.tasks import LISTS


def main(options: Options) -> None:
    if options.smoke:
        _smoke()
    elif not options.report:
        _run(options)
    csv = SMOKE.csv if options.smoke else options.csv
    for path in report.write(csv):
        rich.print(f"Wrote {path}")


def _run(options: Options) -> None:
    tasks = {
        name: task
        for name, task in LISTS[options.list].items()
        if name in options.tasks or not options.tasks
    }
    starts = {name: task.setting._replace(rho=0.0) for name, task in tasks.items()}
    base = study.find(options, study.STUDY, "base", starts)
    starts = {name: base[name]._replace(rho=tasks[name].setting.rho) for name in tasks}
    settings = {"base": base, "sam": study.find(options, study.STUDY, "sam", starts)}
    runs = study.reported_runs(options, study.STUDY, REFERENCES, settings, tasks)
    done = search.run_all(runs, study.STUDY, options)
    scores = {name: defaultdict(dict) for name in REFERENCES}
    for run in runs:
        scores[run.method][run.task][run.seed] = done[run]["score"]
    gains = report.gains(scores["base"], scores["sam"])
    tasks = [name for name in tasks if report.helps(gains[name])]
    rich.print(f"SAM improves the score on {len(tasks)} of {len(gains)} tasks.")
    methods = [name for name in options.methods if name not in REFERENCES]
    runs = study.reported_runs(options, study.STUDY, methods, settings, tasks)
    search.run_all(runs, study.STUDY, options)


SMOKE = Options(
    csv=Path("runs/benchmarks/smoke/accuracy.csv"),
    tasks=("clusters",),
    methods=("budgeted_sam",),
    seeds=(0, 1),
    workers=0,
)


def _smoke() -> None:
    """Trains one task for an epoch, without a search."""
    SMOKE.csv.unlink(missing_ok=True)
    setting = LISTS["held-out"]["clusters"].setting
    settings = {name: {"clusters": setting} for name in REFERENCES}
    short = study.STUDY._replace(execute=functools.partial(study.execute, epochs=1))
    methods = (*REFERENCES, *SMOKE.methods)
    runs = study.reported_runs(SMOKE, short, methods, settings, ("clusters",))
    search.run_all(runs, short, SMOKE)


if __name__ == "__main__":
    search.command_line(main, Options, __doc__)
