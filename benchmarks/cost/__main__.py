"""What does a step cost, in time, tracing, compilation, memory and communication?

Times single jitted training steps with donated state. In each round of a network all kinds of steps
are taken once, in one process. Each is compared with a step of the base optimizer and with one of
``optax.contrib.sam`` (opaque mode) of the same round. The reported ratio is the median over the
rounds. Trace and compile times are of one compilation. Memory is the sum of arguments, results and
temporary buffers that XLA reports.

With --accelerator: SGD, SAM, ARSAM and budgeted_sam on ResNet-18, a ViT and ResNet-50 in bfloat16,
and then training runs of ResNet-18 on Fashion-MNIST with 40 % label noise until the time is over.

The rows of a network are written to the CSV file as soon as they are measured: the same command
continues with the next network after an interruption.
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
from examples.common.image_sets import FASHION_MNIST_FOLDER


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    csv: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """File of the results. By default benchmarks/results/cost.csv, or accelerator.csv there."""
    networks: tuple[str, ...] = ()
    """Only these networks: mlp, cnn, gpt, gpt2_small, resnet50, many_arrays."""
    cores: int = 1
    """Cores that the process is pinned to. Not used with --accelerator."""
    accelerator: bool = False
    """Measure on an accelerator, within --minutes."""
    minutes: float = 8
    """Time after which --accelerator starts nothing new."""
    data_files: Path = FASHION_MNIST_FOLDER
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
    if options.cores < 1:
        raise SystemExit(f"--cores must be at least 1, got {options.cores}.")
    if not options.report:
        if not options.accelerator:  # before JAX starts its threads
            available = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, available[-options.cores :])
        if options.smoke:  # always anew
            for file in options.file.parent.glob(f"{options.file.stem}*.csv"):
                file.unlink()
        _measure(options)
    from benchmarks.cost import report

    for path in report.write(options.file):
        rich.print(f"Wrote {path}")


def _measure(options: Options) -> None:
    from benchmarks.cost import accelerator, networks, report, steps

    if options.accelerator:
        plan = accelerator.SMOKE if options.smoke else accelerator.FULL
        accelerator.run(options.file, options.minutes, options.data_files, plan)
        return
    table.commit()  # now, because files may change while it works
    chosen = networks.SMOKE if options.smoke else networks.CPU
    search.check_names(options, networks=chosen)
    done = {row["network"] for row in table.read(options.file)}
    for name in options.networks or chosen:
        if name not in done:
            print(f"Measuring {name}", flush=True)
            rows = steps.measure(name, chosen[name], tuple(steps.OPTIMIZERS), options.cores)
            table.append(options.file, *rows)
    file = report.communication_file(options.file)
    if not file.exists():
        module = ("-m", "benchmarks.cost.communication", str(file))
        subprocess.run([sys.executable, *module], check=True)


if __name__ == "__main__":
    search.command_line(main, Options, __doc__)
