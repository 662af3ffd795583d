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

import dataclasses
import math
import os
import re
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

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
from benchmarks.harness import table
from benchmarks.scaling.model import SHARE, write_model


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
    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = table.RESULTS / "scaling" / "scaling.csv"
    """Rows are appended; figure and tables are written beside it."""


def all_reduced_bytes(hlo: str) -> tuple[int, int]:
    """Bytes all-reduced by a compiled step without, and with, what its branches hold."""

    def size(bits, shape):
        return int(bits) // 8 * math.prod(int(n) for n in shape.split(",") if n)

    def total(text):
        results = re.findall(r"= (.+?) all-reduce(?:-start)?\(", text)
        return sum(size(*array) for array in re.findall(r"\b[a-z]+(\d+)\[([\d,]*)\]", str(results)))

    return total(hlo.split("\nENTRY ")[1]), total(hlo)


def measure(devices: int, options: Options) -> list[dict[str, Any]]:
    """A row for each method."""
    mesh = Mesh(jax.devices()[:devices], ("batch",))
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (options.width, options.width)
    weights = [jax.random.normal(key, shape) / options.width**0.5 for key in keys[:3]]
    x = jax.random.normal(keys[3], (devices * options.batch_size, options.width))
    x = jax.device_put(x, NamedSharding(mesh, P("batch")))
    links = {
        "SGD": (arsam_jax.sharpness_aware(0, sampling=arsam_jax.sampling.never()), None),
        "SAM": (arsam_jax.sam(0.05), None),
        "SAM of each device": (arsam_jax.m_sam(0.05, num_microbatches=1), "batch"),
        "budgeted_sam, 1/8": (arsam_jax.budgeted_sam(0.05, share=SHARE), None),
    }
    rows = []
    for name, (link, axis_name) in links.items():
        step, carry = compile_step(link, axis_name, mesh, weights, x)
        unsampled, sampled = all_reduced_bytes(step.as_text() or "")
        seconds = []
        for _ in range(options.repetitions + 2):
            start = time.perf_counter()
            carry = jax.block_until_ready(step(*carry, x))
            seconds.append(time.perf_counter() - start)
        rows.append(
            {
                "devices": devices,
                "method": name,
                "parameter_bytes": sum(w.nbytes for w in weights),
                "bytes_of_a_plain_step": unsampled,
                "bytes_of_a_sampled_step": sampled,
                "seconds": round(statistics.median(seconds[2:]), 6),
            }
            | table.provenance()
        )
    return rows


def compile_step(link, axis_name: str | None, mesh: Mesh, weights: list[jax.Array], x: jax.Array):
    """A data-parallel step, compiled, and its weights and state; in `shard_map` by an axis name."""
    tx = optax.chain(link, optax.sgd(0.01, momentum=0.9))

    def example_loss(weights, x):
        for w in weights:
            x = jnp.tanh(x @ w)
        return jnp.square(x).mean(1)

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
        table.append_row(options.csv, row)
    write_model(options.csv)
    rich.print(f"wrote {options.csv}, .png and .md")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
