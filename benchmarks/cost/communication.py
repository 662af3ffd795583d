"""What a data-parallel step sends between devices: all-reduces in the compiled program.

The counts are read from the compiled step on forced host devices, separately for a step without
and with a second gradient. They do not depend on the kind of device.
"""

import dataclasses
import math
import re
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
import tyro
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import arsam_jax
from arsam_jax import parallel, sampling
from benchmarks import table

RHO = 0.05
METHODS = {
    "base": (arsam_jax.sharpness_aware(0, sampling=sampling.never()), None),
    "sam": (arsam_jax.sam(RHO), None),
    "m_sam, perturbed on each device": (arsam_jax.m_sam(RHO, num_microbatches=1), "batch"),
    "arsam": (arsam_jax.arsam(RHO), None),
    "budgeted_sam": (arsam_jax.budgeted_sam(RHO, share=1 / 8), None),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the program."""

    devices: int = 4
    """Number of forced host devices."""
    width: int = 512
    """Width of the three layers of the network."""
    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = table.RESULTS / "cost_communication.csv"
    """File of the results."""


def all_reduces(hlo: str) -> tuple[int, int]:
    """The number of all-reduces in a text of compiled HLO, and the bytes of their results."""
    results = re.findall(r"= (.+?) all-reduce(?:-start)?\(", hlo)
    arrays = re.findall(r"\b[a-z]+(\d+)\[([\d,]*)\]", " ".join(results))
    sizes = (int(bits) // 8 * math.prod(int(n) for n in s.split(",") if n) for bits, s in arrays)
    return len(results), sum(sizes)


def compiled_step(link: Any, axis_name: str | None, options: Options) -> tuple[str, int]:
    """The HLO of a data-parallel step and the bytes of the parameters."""
    mesh = Mesh(jax.devices()[: options.devices], ("batch",))
    keys = jax.random.split(jax.random.key(0), 4)
    weights = [jax.random.normal(key, (options.width, options.width)) for key in keys[:3]]
    x = jax.random.normal(keys[3], (8 * options.devices, options.width))
    x = jax.device_put(x, NamedSharding(mesh, P("batch")))
    tx: Any = optax.chain(link, optax.sgd(0.01, momentum=0.9))

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
        step = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(), P(axis_name)), out_specs=P())
    carry = jax.device_put((weights, tx.init(weights)), NamedSharding(mesh, P()))
    compiled = jax.jit(step).lower(*carry, x).compile()
    return compiled.as_text() or "", sum(w.nbytes for w in weights)


def main(options: Options) -> None:
    jax.config.update("jax_num_cpu_devices", options.devices)
    if len(jax.devices()) < options.devices:
        raise SystemExit(f"--devices {options.devices}: there are only {len(jax.devices())}.")
    for method, (link, axis_name) in METHODS.items():
        hlo, parameter_bytes = compiled_step(link, axis_name, options)
        plain, sampled = all_reduces(hlo.split("\nENTRY ")[1]), all_reduces(hlo)
        row = {
            "method": method,
            "devices": options.devices,
            "parameter_bytes": parameter_bytes,
            "plain_all_reduces": plain[0],
            "plain_bytes": plain[1],
            "sampled_all_reduces": sampled[0],
            "sampled_bytes": sampled[1],
        }
        print(row, flush=True)
        table.append(options.csv, row | table.provenance())


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
