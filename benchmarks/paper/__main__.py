"""Does ARSAM do at the paper's length what the paper reports?

SGD with momentum, SAM, ARSAM with several α, SAM on every fourth step and budgeted_sam train on all
of Fashion-MNIST with label noise for 78,156 steps, so that ARSAM has 1,563 segments of 50 steps.
The network is an MLP with two hidden layers of 128 units on images of 14 x 14 pixels (the means of
2 x 2 pixels), which is large enough to memorize noisy labels and small enough that a run of SGD
takes about 26 seconds on one core. The learning rate follows a cosine from its first value to 0.
Momentum is 0.9, weight decay 5e-4.

For each noise level the learning rate is searched for SGD, and the learning rate and ρ for SAM, by
doubling and halving: one run of full length with a separate seed and 10,000 held-out training
images with clean labels. ARSAM and the others take over SAM's setting.

Every finished run is written to the CSV file at once and is never repeated: the same command
continues after an interruption. The paper's other tables: python -m benchmarks.paper.applications.
"""

import dataclasses
from pathlib import Path

import rich

from benchmarks import search
from benchmarks.paper import label_noise, report
from benchmarks.paper.label_noise import Options


def main(options: Options) -> None:
    if options.smoke:
        options = dataclasses.replace(
            options,
            csv=Path("runs/benchmarks/smoke/paper.csv"),
            noise=options.noise[:1],
            alphas=options.alphas[:1],
            seeds=options.seeds[:1],
            data="digits",
            epochs=5,
            workers=0,
        )
        options.csv.unlink(missing_ok=True)
    if not options.report:
        label_noise.run(options)
    if options.stage == "run":
        for path in report.write(options.csv):
            rich.print(f"Wrote {path}")


if __name__ == "__main__":
    search.command_line(main, Options, __doc__)
