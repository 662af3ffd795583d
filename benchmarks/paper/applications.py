"""The paper's other tables in small: segmentation, pose, quantization, and a language model.

Runs the programs of ``examples`` by their command lines. The learning rate is searched for each
method and ρ for SAM, by doubling and halving on held-out training examples. All other methods take
over SAM's ρ. Then each method is run on the test set.

Finished runs are kept in the CSV file: the same command continues after an interruption.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import rich
import tyro

from benchmarks import search, table

SEARCHED = {"sam": ("learning_rate", "rho")}


class Setting(NamedTuple):
    """What is searched. ρ is 0 for the base optimizer."""

    learning_rate: float
    rho: float


class Application(NamedTuple):
    """A program of ``examples``."""

    command: tuple[str, ...]  # the module and its arguments
    measure: str  # that the search improves
    sign: int  # 1 if a larger measure is better, else -1
    start: Setting  # from which the search starts


APPLICATIONS = {
    "segmentation": Application(
        ("examples.segmentation",), "mean_iou", 1, Setting(learning_rate=0.1, rho=0.05)
    ),
    "pose": Application(("examples.pose",), "mean", 1, Setting(learning_rate=5e-3, rho=0.03)),
    "quantization": Application(
        ("examples.quantization",), "accuracy", 1, Setting(learning_rate=0.01, rho=0.5)
    ),
    "quantization_of_weights": Application(
        ("examples.quantization", "--through", "weights"),
        "accuracy",
        1,
        Setting(learning_rate=0.01, rho=0.5),
    ),
    "language": Application(
        ("examples.language",), "loss", -1, Setting(learning_rate=3e-3, rho=0.05)
    ),
}
SMOKE = (  # a network and a run of seconds
    "--epochs 1 --width 16 --depth 1 --heads 2 --length 32 --batch-size 256 --fine-tuning-steps 2"
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    application: Annotated[str, tyro.conf.Positional] = "quantization"
    """segmentation, pose, quantization, quantization_of_weights or language."""
    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("runs/benchmarks/applications.csv")
    """File of the results."""
    methods: tuple[str, ...] = ("base", "sam", "arsam", "budgeted_sam")
    """Methods to run. base and sam are searched in any case."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of the reported runs."""
    tuning_seeds: tuple[int, ...] = (100, 101)
    """Seeds of the search."""
    smoke: bool = False
    """Only try the program, in seconds: a tiny language model, without a search."""

    def __post_init__(self):
        if self.application not in APPLICATIONS:
            raise SystemExit(f"{self.application!r} is not one of {', '.join(APPLICATIONS)}.")
        search.check_seeds(self.seeds, self.tuning_seeds)


def run(options: Options, stage: str, method: str, setting: Setting) -> list[float]:
    """Trains the seeds that are not in the CSV file. Returns the measure of all seeds."""
    name, own = options.application, APPLICATIONS[options.application]
    seeds = options.tuning_seeds if stage == "search" else options.seeds
    identity = {"stage": stage, "experiment": name, "method": method} | setting._asdict()

    def found():
        rows = [row for row in table.read(options.csv) if identity.items() <= row.items()]
        return {row["seed"]: row["value"] for row in rows if row["measure"] == own.measure}

    missing = [seed for seed in seeds if seed not in found()]
    if missing:
        rich.print(f"Training {name}: {stage}, {method}, {setting}, seeds {missing}")
        for seed, result in _train(options, stage, method, setting, missing).items():
            common = identity | {"seed": seed, "percent_sam": result["percent_sam"]}
            rows = [
                common | {"measure": measure, "value": value} | table.provenance()
                for measure, value in result["measures"].items()
            ]
            table.append(options.csv, *rows)
    values = found()
    return [own.sign * values[seed] for seed in seeds]


def _train(options, stage, method, setting, seeds) -> dict[int, dict[str, Any]]:
    """The result of each seed, from the command line of the example."""
    own = APPLICATIONS[options.application]
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--method", method, "--seeds", *map(str, seeds), "--output", folder]
        arguments += ["--name", "run", "--learning-rate", f"{setting.learning_rate:g}"]
        if method != "base":
            arguments += ["--rho", f"{setting.rho:g}"]
        if stage == "search":
            arguments.append("--validation")
        if options.smoke:
            arguments += SMOKE.split()
        command = [sys.executable, "-m", *own.command, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        places = {seed: Path(folder, "run", method, f"seed{seed}", "result.json") for seed in seeds}
        return {seed: json.loads(place.read_text()) for seed, place in places.items()}


def find(options: Options, method: str, start: Setting) -> Setting:
    """The best setting of a method."""

    def scores_of(tried):
        return [statistics.fmean(run(options, "search", method, s)) for _, s in tried]

    fields = SEARCHED.get(method, ("learning_rate",))
    return search.climb({method: start}, lambda at: search.scaled(at, fields), scores_of)[method]


def main(options: Options) -> None:
    start = APPLICATIONS[options.application].start
    if options.smoke:
        run(options, "run", "sam", start)
        return
    base = find(options, "base", start._replace(rho=0.0))
    sam = find(options, "sam", start._replace(learning_rate=base.learning_rate))
    for method in options.methods:
        setting = {"base": base, "sam": sam}.get(method) or find(options, method, sam)
        run(options, "run", method, setting)


if __name__ == "__main__":
    search.command_line(main, Options, __doc__)
