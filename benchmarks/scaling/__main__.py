"""What a step sends between devices, measured, and what it costs up to 1,024 chips, on paper.

Measured: for each number of devices, the bytes that a data-parallel step all-reduces, read off the
compiled program apart for a step without and with a second gradient, and its time. Forced CPU
devices share the cores, so there only the bytes mean anything.

On paper: with a fixed global batch, the compute of a gradient shrinks as 1/N and its all-reduce
does not. One gradient takes

    T_g = FLOP a gradient of the device's examples / (utilisation · peak)
    T_r = 2 (N − 1)/N · 4 bytes · parameters / bandwidth + 2 log2(N) · latency

of which the part of T_r that hides behind the backward pass costs nothing. SGD pays one of both a
step, SAM two, a method that samples a share s of the steps 1 + s, and SAM with a perturbation of
each device's own (m = the device's examples) two T_g and one T_r.
"""

import csv
import dataclasses
import math
import os
import re
import statistics
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax
import rich
import tyro
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.progress import track

import arsam_jax
from arsam_jax import parallel

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


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of devices to measure; on CPU, so many are made."""
    width: int = 512
    """Of the three layers of the network that is measured."""
    batch_size: int = 32
    """Examples on each device."""
    repetitions: int = 20
    """Steps that are timed."""
    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("benchmarks/scaling.csv")
    """Rows are appended; figure and tables are written beside it."""


def all_reduced_bytes(hlo: str) -> tuple[int, int]:
    """Bytes all-reduced by a compiled step without, and with, what its branches hold."""

    def size(bits, shape):
        return int(bits) // 8 * math.prod(int(n) for n in shape.split(",") if n)

    def total(text):
        results = re.findall(r"= (.+?) all-reduce(?:-start)?\(", text)
        return sum(size(*array) for array in re.findall(r"\b[a-z]+(\d+)\[([\d,]*)\]", str(results)))

    return total(hlo.split("\nENTRY ")[1]), total(hlo)


def measure(devices: int, options: Options) -> list[dict]:
    """A row for each method."""
    mesh = Mesh(jax.devices()[:devices], ("batch",))
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (options.width, options.width)
    weights = [jax.random.normal(key, shape) / options.width**0.5 for key in keys[:3]]
    x = jax.random.normal(keys[3], (devices * options.batch_size, options.width))
    x = jax.device_put(x, NamedSharding(mesh, P("batch")))

    def example_loss(weights, x):
        for w in weights:
            x = jnp.tanh(x @ w)
        return jnp.square(x).mean(1)

    def make_step(link, axis_name=None):
        tx = optax.chain(link, optax.sgd(0.01, momentum=0.9))

        def loss(weights, x):
            return example_loss(weights, x).mean()

        grad = jax.grad(loss) if axis_name is None else parallel.grad(loss, axis_name)

        def step(weights, state, x):
            updates, state = tx.update(
                grad(weights, x),
                state,
                weights,
                grad_fn=lambda weights: grad(weights, x),
                example_loss_fn=example_loss,
                batch=x,
                axis_name=axis_name,
            )
            return optax.apply_updates(weights, updates), state

        if axis_name is not None:
            specs = (P(), P(), P(axis_name))
            step = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P())
        carry = jax.device_put((weights, tx.init(weights)), NamedSharding(mesh, P()))
        return jax.jit(step).lower(*carry, x).compile(), carry

    links = {
        "SGD": make_step(arsam_jax.sharpness_aware(0, sampling=arsam_jax.sampling.never())),
        "SAM": make_step(arsam_jax.sam(0.05)),
        "SAM of each device": make_step(arsam_jax.m_sam(0.05, num_microbatches=1), "batch"),
        "budgeted_sam, 1/8": make_step(arsam_jax.budgeted_sam(0.05, share=SHARE)),
    }
    rows = []
    for name, (step, carry) in links.items():
        unsampled, sampled = all_reduced_bytes(step.as_text() or "")
        seconds = []
        for _ in range(options.repetitions + 2):
            start = time.perf_counter()
            carry = jax.block_until_ready(step(*carry, x))
            seconds.append(time.perf_counter() - start)
        rows.append(
            {
                "date": time.strftime("%Y-%m-%d"),
                "device": jax.devices()[0].device_kind,
                "versions": f"jax {jax.__version__}, arsam_jax {arsam_jax.__version__}",
                "devices": devices,
                "method": name,
                "parameter_bytes": sum(w.nbytes for w in weights),
                "bytes_of_a_plain_step": unsampled,
                "bytes_of_a_sampled_step": sampled,
                "seconds": round(statistics.median(seconds[2:]), 6),
            }
        )
    return rows


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


def main(options: Options) -> None:
    # XLA:CPU has one thread a device, too few for steps that overlap.
    os.environ.setdefault("NPROC", str(4 * max(options.devices)))
    jax.config.update("jax_num_cpu_devices", max(options.devices))
    if max(options.devices) > len(jax.devices()):
        raise SystemExit(f"--devices: there are only {len(jax.devices())} devices")
    rows = [
        row
        for count in track(options.devices, "measuring", transient=True)
        for row in measure(count, options)
    ]
    for row in rows:
        plain, sampled, size = (
            row[name]
            for name in ("bytes_of_a_plain_step", "bytes_of_a_sampled_step", "parameter_bytes")
        )
        rich.print(
            f"{row['devices']:3} devices {row['method']:20} all-reduces {plain / size:.3f} × the"
            f" parameters, sampled {sampled / size:.3f} ×; {1000 * row['seconds']:.2f} ms"
        )
    is_new = not options.csv.exists()
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    with options.csv.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)
    write_model(options.csv)
    rich.print(f"wrote {options.csv}, .png and .md")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
