"""What does a step cost, in time, tracing, compilation, memory and communication?

Times single jitted training steps with donated state. Each kind of step is compared with a step of
the base optimizer and with one of ``optax.contrib.sam`` (opaque mode) in interleaved rounds in one
process. The reported ratio is the median over the rounds. Trace and compile times are of one
compilation. Memory is the sum of arguments, results and temporary buffers that XLA reports.

With --accelerator: the same on ResNet-18, ResNet-50 and a ViT in bfloat16, and then training runs
of ResNet-18 on Fashion-MNIST with 40 % label noise until the time is over.

Every row is written to the CSV file as soon as it is measured: the same command continues after an
interruption.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import rich
import tyro

from benchmarks import search, table


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    csv: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """File of the results. By default benchmarks/results/cost.csv, or accelerator.csv there."""
    networks: tuple[str, ...] = ()
    """Only these networks: mlp, cnn, many_arrays, resnet50_narrow, gpt_64, gpt_256."""
    rounds: int = 30
    """Interleaved rounds of each comparison."""
    cores: int = 1
    """Cores that the process is pinned to. Not used with --accelerator."""
    accelerator: bool = False
    """Measure on an accelerator, within --minutes."""
    minutes: float = 8
    """Time after which --accelerator starts nothing new."""
    data_files: Path = Path("/usr/share/datasets/fashion-mnist")
    """Folder of the four files of Fashion-MNIST, for the training runs of --accelerator."""
    smoke: bool = False
    """Only try the program, in seconds, on tiny networks and digits. The results are in
    runs/benchmarks/smoke."""
    report: bool = False
    """Only write the tables and the figure from the CSV file."""

    @property
    def file(self) -> Path:
        name = "accelerator.csv" if self.accelerator else "cost.csv"
        folder = Path("runs/benchmarks/smoke") if self.smoke else table.RESULTS
        return self.csv or folder / name


def main(options: Options) -> None:
    if options.rounds < 2 or options.cores < 1:
        raise SystemExit(f"--rounds {options.rounds}, --cores {options.cores}: at least 2 and 1.")
    if not options.report:
        if not options.accelerator:  # before JAX starts its threads
            available = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, available[-options.cores :])
        _measure(options)
    from benchmarks.cost import report

    for path in report.write(options.file):
        rich.print(f"Wrote {path}")


def _measure(options: Options) -> None:
    from benchmarks.cost import accelerator, networks, steps

    if options.accelerator:
        plan = accelerator.SMOKE if options.smoke else accelerator.FULL
        accelerator.run(options.file, options.minutes, options.data_files, plan)
        return
    chosen = networks.SMOKE if options.smoke else networks.CPU
    search.check_names(options, networks=chosen)
    for name in options.networks or chosen:
        done = {(row["network"], row["step"]) for row in table.read(options.file)}
        rounds = 2 if options.smoke else options.rounds
        for row in steps.measure(name, chosen[name], rounds, done, options.cores):
            table.append(options.file, row)
            ratios = f"{row['times_base']:.3f} x base, {row['times_sam']:.3f} x optax.contrib.sam"
            print(f"{name}, {row['step']}: {row['milliseconds']:.2f} ms, {ratios}", flush=True)
    from benchmarks.cost import report

    file = report.communication_file(options.file)
    if not file.exists():
        module = ("-m", "benchmarks.cost.communication", "--csv", str(file))
        subprocess.run([sys.executable, *module], check=True)


if __name__ == "__main__":
    search.command_line(main, Options, __doc__)
