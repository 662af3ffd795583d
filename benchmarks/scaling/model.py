"""What a step costs up to 1,024 chips, on paper: the model that the program's ``--help`` states."""

import math
from pathlib import Path
from typing import NamedTuple

CHIPS = tuple(2**i for i in range(11))
SHARE = 1 / 8
GRADIENT_BYTES = 4  # float32 gradients are averaged
OVERLAPS = {"nothing hidden": 0.0, "hidden behind the backward pass": 2 / 3}  # in units of T_g


class System(NamedTuple):
    """A chip and its network, from the makers' data sheets."""

    peak: float  # bfloat16 FLOP/s, dense
    bandwidth: float  # bytes/s that a chip sends in an all-reduce over all of them
    latency: float  # seconds a hop
    utilisation: float = 0.4


class Training(NamedTuple):
    """What is trained: parameters, FLOP of a gradient of one example, examples in a batch."""

    parameters: float
    flop: float
    batch: int


SYSTEMS = {
    "TPU v5e": System(peak=197e12, bandwidth=100e9, latency=1e-6),  # ICI, both ways of one axis
    "H100, InfiniBand": System(peak=989e12, bandwidth=50e9, latency=5e-6),  # 400 Gbit/s a GPU
}
TRAININGS = {
    "ResNet-50, 4,096 images": Training(25.6e6, 3 * 2 * 4.1e9, 4096),
    "ViT-L/16, 4,096 images": Training(304e6, 3 * 2 * 61.6e9, 4096),
    "1.3 B language model, 1,024 × 2,048 tokens": Training(1.3e9, 6 * 1.3e9 * 2048, 1024),
}
METHODS = {  # gradients and all-reduces a step
    "SGD": (1, 1),
    "SAM": (2, 2),
    "SAM of each device": (2, 1),
    "budgeted_sam, 1/8": (1 + SHARE, 1 + SHARE),
}


def gradient_seconds(training: Training, system: System, chips: int) -> tuple[float, float]:
    """T_g and T_r."""
    compute = training.flop * training.batch / chips / (system.utilisation * system.peak)
    size = GRADIENT_BYTES * training.parameters
    reduce = 2 * (chips - 1) / chips * size / system.bandwidth
    return compute, reduce + 2 * math.log2(chips) * system.latency


def step_seconds(method: str, training: Training, system: System, chips: int, overlap: float):
    """Of the mean step; ``overlap`` is how much of T_r hides, in units of T_g."""
    compute, reduce = gradient_seconds(training, system, chips)
    gradients, reduces = METHODS[method]
    return gradients * compute + reduces * max(0.0, reduce - overlap * compute)


def crossover(training: Training, system: System) -> int | None:
    """The least power of two of chips at which T_r is longer than T_g."""
    for chips in CHIPS:
        compute, reduce = gradient_seconds(training, system, chips)
        if reduce > compute and chips <= training.batch:
            return chips
    return None


def write_model(path: Path) -> None:
    """The cost model as a figure and a Markdown table beside ``path``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    header = ["training", "chips are", "second all-reduce dominates from", "overlap"]
    header += [f"{method} at 1,024" for method in METHODS if method != "SGD"]
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    shape = {"nrows": len(SYSTEMS), "ncols": len(TRAININGS), "sharex": True, "sharey": True}
    figure, axes = plt.subplots(**shape, figsize=(13, 7), layout="constrained")
    for row, (system_name, system) in enumerate(SYSTEMS.items()):
        for column, (name, training) in enumerate(TRAININGS.items()):
            axis, chips = axes[row, column], [n for n in CHIPS if n <= training.batch]
            for overlap_name, overlap in OVERLAPS.items():

                def ratio(method, n, training=training, system=system, overlap=overlap):
                    of = [step_seconds(m, training, system, n, overlap) for m in (method, "SGD")]
                    return of[0] / of[1]

                for color, method in zip(("C3", "C0", "C2"), list(METHODS)[1:], strict=True):
                    axis.plot(
                        chips,
                        [ratio(method, n) for n in chips],
                        color=color,
                        linestyle="--" if overlap else "-",
                        label=f"{method}, {overlap_name}",
                    )
                first = crossover(training, system)
                cells = [name, system_name, f"{first} chips" if first else "never", overlap_name]
                cells += [f"{ratio(m, CHIPS[-1]):.2f} × SGD" for m in list(METHODS)[1:]]
                lines.append("| " + " | ".join(cells) + " |")
            axis.set_xscale("log", base=2)
            axis.set_title(f"{name}\n{system_name}", fontsize=9)
            axis.grid(alpha=0.25)
    for axis in axes[-1]:
        axis.set_xlabel("chips, the global batch being fixed")
    figure.supylabel("time of a step in units of SGD's")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path.with_suffix(".png"), dpi=120)
    plt.close(figure)
    title = "# Cost of a step up to 1,024 chips, on paper"
    path.with_suffix(".md").write_text("\n".join([title, "", *lines, ""]))
