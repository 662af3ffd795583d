"""What a data-parallel step sends between devices: all-reduces in the compiled program.

The counts are read from the compiled step on forced host devices, separately for a step without
and with a second gradient. They do not depend on the kind of device.
"""

import math
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import arsam_jax
from arsam_jax import parallel, sampling
from benchmarks import table

DEVICES = 4
RHO = 0.05
WIDTH = 512  # of the three layers of the network
METHODS = {
    "base": (arsam_jax.sharpness_aware(0, sampling=sampling.never()), None),
    "sam": (arsam_jax.sam(RHO), None),
    "m_sam, perturbed on each device": (arsam_jax.m_sam(RHO, num_microbatches=1), "batch"),
    "arsam": (arsam_jax.arsam(RHO), None),
    "budgeted_sam": (arsam_jax.budgeted_sam(RHO, share=1 / 8), None),
}


def all_reduces(hlo: str) -> tuple[int, int]:
    """The number of all-reduces in a text of compiled HLO, and the bytes of their results."""
    results = re.findall(r"= (.+?) all-reduce(?:-start)?\(", hlo)
    arrays = re.findall(r"\b[a-z]+(\d+)\[([\d,]*)\]", " ".join(results))
    sizes = (int(bits) // 8 * math.prod(int(n) for n in s.split(",") if n) for bits, s in arrays)
    return len(results), sum(sizes)


def compiled_step(link: Any, axis_name: str | None) -> tuple[str, int]:
    """The HLO of a data-parallel step and the bytes of the parameters."""
    mesh = Mesh(jax.devices()[:DEVICES], ("batch",))
    keys = jax.random.split(jax.random.key(0), 4)
    weights = [jax.random.normal(key, (WIDTH, WIDTH)) for key in keys[:3]]
    x = jax.random.normal(keys[3], (8 * DEVICES, WIDTH))
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


def main(csv: Path) -> None:
    jax.config.update("jax_num_cpu_devices", DEVICES)
    for method, (link, axis_name) in METHODS.items():
        hlo, parameter_bytes = compiled_step(link, axis_name)
        plain, sampled = all_reduces(hlo.split("\nENTRY ")[1]), all_reduces(hlo)
        row = {
            "method": method,
            "devices": DEVICES,
            "parameter_bytes": parameter_bytes,
            "plain_all_reduces": plain[0],
            "plain_bytes": plain[1],
            "sampled_all_reduces": sampled[0],
            "sampled_bytes": sampled[1],
        }
        table.append(csv, row | table.provenance())


if __name__ == "__main__":  # a separate process, in which JAX has other devices
    main(Path(sys.argv[1]))
