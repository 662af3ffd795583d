"""Whether SAM's gain on the language model of the study is SAM's.

The search of the study knows rates that lie a factor of two apart, and a cosine that starts at its
highest. Here AdamW, SAM and what samples it less often train at rates between, and on a schedule
with a warm-up, too. All of it sees held-out training examples and the seeds of the search alone.
"""

import dataclasses
from pathlib import Path
from typing import Any

import rich

from benchmarks.harness import search, table, tuning
from benchmarks.harness.methods import METHODS
from benchmarks.harness.statistics import markdown_table, mean_and_error
from benchmarks.harness.tuning import Run
from benchmarks.harness.workloads import Setting
from benchmarks.held_out import study
from benchmarks.held_out.workloads import WORKLOADS

LANGUAGE = WORKLOADS["language"]
SCHEDULES = {"cosine": LANGUAGE, "warm-up": LANGUAGE._replace(schedule="stable")}
RATES = (0.004, 0.0057, 0.008)
TRIED = (("sgd", 0), ("sam", 1), ("budgeted_sam", 1 / 4))
WEIGHT_DECAY = 3.05e-6  # where the search of the study ended


@dataclasses.dataclass(frozen=True)
class Options(search.Options):
    """Options of the benchmark."""

    csv: Path = table.RESULTS / "held_out/warm_up.csv"
    """Results; a table is written beside it."""


def execute(run: Run) -> dict[str, Any]:
    method = METHODS[run.method]
    return tuning.train_row(
        run, SCHEDULES[run.workload], method.make, method.cost, held_out="validation"
    )


STUDY = search.Study(Run, execute, tuning.group, lambda run: 3 + LANGUAGE.seconds * (1 + run.share))


def main(options: Options) -> None:
    points = {
        (name, method, share, rate): [
            Run("tune", name, method, share, seed, *setting) for seed in study.TUNING_SEEDS
        ]
        for name in SCHEDULES
        for method, share in TRIED
        for rate in RATES
        for setting in [Setting(LANGUAGE.setting.rho * (method != "sgd"), rate, WEIGHT_DECAY)]
    }
    done = search.run_all((run for runs in points.values() for run in runs), STUDY, options)
    body = []
    for (name, method, share, rate), runs in points.items():
        score = mean_and_error([done[run]["accuracy"] for run in runs])
        loss = mean_and_error([done[run]["train_loss"] for run in runs])
        body.append([name, method, f"{share:g}", f"{rate:g}", f"{score:.2f}", f"{loss.mean:.3f}"])
    header = ["schedule", "method", "share", "learning rate", "score, %", "training loss"]
    path = options.csv.with_suffix(".md")
    path.write_text(
        "# The language model at finer rates, and with a warm-up\n\n"
        f"{markdown_table(header, body)}\n"
    )
    rich.print(f"wrote {path}")


if __name__ == "__main__":
    search.command_line(main, Options, __doc__)
