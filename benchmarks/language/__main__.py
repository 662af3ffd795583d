"""What survives fine-tuning and rounding of language models, as `registration.md` states.

A base phase with AdamW is followed by a short last phase with each arm: AdamW, weight averaging,
SAM, functional SAM, budgeted_sam, ARSAM. Then the rise of the loss by rounding and by fine-tuning
on another text is compared at equal clean loss. Every finished run is written to the CSV file at
once: the same command continues after an interruption.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import rich

from benchmarks import search
from benchmarks.language import experiment, report
from benchmarks.language.experiment import LAST_DECAY, SEARCH_SEEDS, WITHOUT_RADIUS, Options, Run

RATES, RADII, DECAYS = (0.5, 1.0, 2.0), (0.02, 0.1, 0.5), (0.0, 0.1, 0.3)
SMOKE = {"width": 16, "depth": 1, "length": 16, "batch": 8, "steps": 40, "evaluated": 16}
SMOKE |= {"fine_tuning_steps": 4, "seeds": (0,), "workers": 0}


def run(options: Options) -> None:
    size = experiment.make(options).size
    study = search.Study(
        run=Run,
        execute=functools.partial(experiment.execute, options=options),
        group=lambda run: (run.stage, run.arm if run.stage == "search" else run.seed),
        seconds=lambda run: 60,
        score="validation_loss",
    )
    tried = dataclasses.replace(options, csv=report.search_file(options.csv))

    def best(arm: str, rates: Sequence[float]) -> tuple[float, float]:
        """The rate and the value with the lowest mean validation loss."""
        values = DECAYS if arm in WITHOUT_RADIUS else RADII
        values = (LAST_DECAY,) if arm == "adamw_decay" else values
        settings = [*itertools.product(rates, values)]
        settings = settings[:1] if options.smoke else settings
        seeds = SEARCH_SEEDS[: 1 if options.smoke else None]
        runs = {s: [Run("search", arm, *s, seed, size) for seed in seeds] for s in settings}
        done = search.run_all(itertools.chain(*runs.values()), study, tried)
        losses = {s: search.mean_score(own, done, study) for s, own in runs.items()}
        return min(losses, key=lambda s: math.inf if math.isnan(losses[s]) else losses[s])

    chosen = {"adamw": best("adamw", RATES)}
    for arm in options.arms:
        factor = chosen["adamw"][0] / RATES[0] if arm == "larger_rate" else 1
        chosen[arm] = best(arm, [factor * rate for rate in RATES])
    runs = [
        Run("run", arm, *setting, seed, size)
        for seed in options.seeds
        for arm, setting in chosen.items()
    ]
    search.run_all(runs, study._replace(score="loss_at_4"), options)


def main(options: Options) -> None:
    if options.smoke:
        csv = Path("runs/benchmarks/smoke/language.csv")
        options = dataclasses.replace(options, csv=csv, **SMOKE)
        for file in (csv, report.search_file(csv)):
            file.unlink(missing_ok=True)
    elif not options.report and (options.text is None or options.other_text is None):
        raise SystemExit("--text and --other-text are needed. Only --smoke runs without them.")
    search.check_names(options, arms=report.ARMS)
    search.check_seeds(options.seeds, SEARCH_SEEDS)
    if not options.report:
        run(options)
    for path in report.write(options.csv):
        rich.print(f"Wrote {path}")


if __name__ == "__main__":
    search.command_line(main, Options, __doc__)
