"""What a step costs in time, compilation and memory: ``python -m benchmarks.step_time --help``.

Times whole jitted, donated train steps of a network in interleaved pairs and reports the median of
the ratios of the pairs, so that noise of the machine that is slower than a step cancels.
"""

import csv
import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

COMPARISONS = (
    # what, in units of, the limit that the project holds itself to
    ("arsam plain step", "sgd", 1.02),
    ("arsam reuse step", "sgd", 1.02),
    ("arsam sampled step", "optax.contrib.sam", 1.02),
    ("sam", "optax.contrib.sam", 1.02),
    ("optax.contrib.sam", "sgd", None),
    ("sgd", "sgd again", None),  # the noise of the method
)
COMPILED = ("arsam sampled step", "optax.contrib.sam", 1.35)
MEMORY = (
    # what, how many buffers shaped like the parameters it may need beyond optax.contrib.sam
    ("sam", 0),
    ("arsam without reuse", 0),
    ("arsam reuse in bfloat16", 0.5),
    ("arsam sampled step", 1),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    models: tuple[Literal["cnn", "mlp", "transformer"], ...] = ("cnn", "mlp", "transformer")
    batch_size: int = 128
    pairs: int = 60
    """Interleaved pairs of steps of each comparison."""
    compilations: int = 3
    """Interleaved pairs of compilations; 0 leaves them out."""
    cores: int = 1
    """Cores to pin this process to; 0 leaves it as it is."""
    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("benchmarks/step_time.csv")
    """Rows are appended to this file."""


class Step(NamedTuple):
    """One method's train step.

    Attributes:
      run: takes one step, in place, and waits for it.
      compile: compiles it anew; returns the executable.
    """

    run: Callable[[], None]
    compile: Callable[[], Any]


def main(options: Options) -> None:
    if options.cores:  # before jax starts its threads
        available = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, available[-options.cores :])
    import jax

    import arsam_jax

    common = {
        "date": time.strftime("%Y-%m-%d"),
        "device": jax.devices()[0].device_kind,
        "cores": options.cores,
        "versions": f"jax {jax.__version__}, arsam_jax {arsam_jax.__version__}",
        "batch_size": options.batch_size,
    }
    rows = []
    for model in options.models:
        steps, params_bytes = make_steps(model, options.batch_size)
        print(f"\n{model}, batch {options.batch_size}, {options.cores or 'all'} core(s),", end=" ")
        print(f"{common['device']}, {params_bytes / 4:,.0f} parameters")
        print(f"{'':9}{'what':24}{'in units of':20}{'ratio':>8}{'quartiles':>16}{'limit':>7}")
        for measurement in measure(steps, params_bytes, options):
            quartiles = f"{measurement['low_quartile']:.3f}-{measurement['high_quartile']:.3f}"
            print(
                f"{measurement['measure']:9}{measurement['step']:24}{measurement['unit']:20}"
                f"{measurement['ratio']:8.3f}{quartiles:>16}{measurement['limit'] or '':>7}"
                f"   {measurement['value']}",
                flush=True,
            )
            rows.append(common | {"model": model} | measurement)
    is_new = not options.csv.exists()
    with options.csv.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def measure(steps: dict[str, Step], params_bytes: int, options: Options):
    """Yields the measurements of one model as columns of the CSV file."""

    def columns(kind, name, unit, limit, ratios, value):
        low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        return {
            "measure": kind,
            "step": name,
            "unit": unit,
            "ratio": round(median, 4),
            "low_quartile": round(low, 4),
            "high_quartile": round(high, 4),
            "limit": limit,
            "value": value,
            "repetitions": len(ratios),
        }

    for name, unit, limit in COMPARISONS:
        ratios, seconds = compare(steps[name].run, steps[unit].run, options.pairs, warm_up=3)
        yield columns("time", name, unit, limit, ratios, f"{1000 * seconds:.3f} ms")
    if options.compilations:
        name, unit, limit = COMPILED
        ratios, seconds = compare(
            steps[name].compile, steps[unit].compile, options.compilations, warm_up=0
        )
        yield columns("compile", name, unit, limit, ratios, f"{seconds:.2f} s")
    unit = needed_bytes(steps["optax.contrib.sam"].compile())
    for name, buffers in MEMORY:
        peak = needed_bytes(steps[name].compile())
        extra = (peak - unit) / params_bytes
        limit = round(1 + buffers * params_bytes / unit, 4)
        value = f"{peak} bytes, {extra:+.2f} × params"
        yield columns("memory", name, "optax.contrib.sam", limit, [peak / unit], value)


def needed_bytes(compiled) -> int:
    """Arguments, results that do not take the place of arguments, and temporary buffers."""
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes


def compare(
    function: Callable[[], Any], unit: Callable[[], Any], pairs: int, warm_up: int
) -> tuple[list[float], float]:
    """The ratios of ``pairs`` pairs and the median time of ``function`` in seconds.

    Which of the two goes first alternates, so that neither is always the one with a warm cache.
    """

    def seconds(function):
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    for _ in range(warm_up):
        function()
        unit()
    ratios, times = [], []
    for i in range(pairs):
        if i % 2:
            a, b = seconds(function), seconds(unit)
        else:
            b, a = seconds(unit), seconds(function)
        ratios.append(a / b)
        times.append(a)
    return ratios, statistics.median(times)


def make_steps(model: str, batch_size: int) -> tuple[dict[str, Step], int]:
    """The steps to compare by name, and the size of the parameters in bytes."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    import arsam_jax

    class MLP(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x.reshape(len(x), -1)
            for width in (256, 256):
                x = nn.relu(nn.Dense(width)(x))
            return nn.Dense(10)(x)

    class CNN(nn.Module):
        @nn.compact
        def __call__(self, x):
            for features, strides in ((16, 1), (32, 2), (32, 2)):
                x = nn.Conv(features, (3, 3), strides=strides, use_bias=False)(x)
                x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
            return nn.Dense(10)(x.mean((1, 2)))

    class Transformer(nn.Module):
        """One block of width 128 on the 16 patches of 7×7."""

        @nn.compact
        def __call__(self, x):
            x = x.reshape(len(x), 4, 7, 4, 7).swapaxes(2, 3).reshape(len(x), 16, 49)
            x = nn.Dense(128)(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x))
            x = x + nn.Dense(128)(nn.gelu(nn.Dense(512)(nn.LayerNorm()(x))))
            return nn.Dense(10)(x.mean(1))

    network = {"mlp": MLP, "cnn": CNN, "transformer": Transformer}[model]()
    key = jax.random.key(0)
    images = jax.random.normal(key, (batch_size, 28, 28, 1))
    labels = jax.random.randint(key, (batch_size,), 0, 10)
    variables = network.init(key, images)

    def gradient(params, batch_stats):
        def loss_fn(params):
            logits, changed = network.apply(
                {"params": params, "batch_stats": batch_stats}, images, mutable=["batch_stats"]
            )
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, changed.get("batch_stats", {})

        (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        return grads, batch_stats, loss

    def make_step(tx, prepare=lambda opt_state: opt_state):
        def train_step(params, batch_stats, opt_state):
            grads, new_batch_stats, loss = gradient(params, batch_stats)
            updates, opt_state = tx.update(
                grads,
                opt_state,
                params,
                grad_fn=lambda params, *_: gradient(params, batch_stats)[0],
            )
            return optax.apply_updates(params, updates), new_batch_stats, opt_state, loss

        jitted = jax.jit(train_step, donate_argnums=(0, 1, 2))
        params = jax.tree.map(jnp.copy, variables["params"])
        batch_stats = jax.tree.map(jnp.copy, variables.get("batch_stats", {}))
        state = [params, batch_stats, prepare(tx.init(params))]

        def run():
            state[0], state[1], state[2], _ = jax.block_until_ready(jitted(*state))

        def compile_anew():
            jax.clear_caches()
            return jax.jit(train_step, donate_argnums=(0, 1, 2)).lower(*state).compile()

        return Step(run, compile_anew)

    learning_rate, rho = 1e-3, 0.05
    sgd = optax.sgd(learning_rate, momentum=0.9)
    plain_sgd = optax.with_extra_args_support(sgd)
    opaque_sam = optax.contrib.sam(
        sgd, optax.chain(optax.contrib.normalize(), optax.sgd(rho)), opaque_mode=True
    )

    def arsam(samples, **kwargs):
        limits = {"initial_samples": samples, "min_samples": samples}
        return optax.chain(arsam_jax.arsam(rho, 0.4, **limits, **kwargs), sgd)

    def just_sampled(opt_state):
        return (opt_state[0]._replace(age=jnp.zeros([], jnp.int32)), *opt_state[1:])

    steps = {
        "sgd": make_step(plain_sgd),
        "sgd again": make_step(plain_sgd),
        "optax.contrib.sam": make_step(opaque_sam),
        "sam": make_step(optax.chain(arsam_jax.sam(rho), sgd)),
        "arsam sampled step": make_step(arsam(samples=50)),
        "arsam reuse step": make_step(arsam(samples=0, reuse_steps=None), just_sampled),
        "arsam plain step": make_step(arsam(samples=0)),
        "arsam without reuse": make_step(arsam(samples=50, reuse_steps=0)),
        "arsam reuse in bfloat16": make_step(arsam(samples=50, reuse_dtype=jnp.bfloat16)),
    }
    return steps, sum(x.nbytes for x in jax.tree.leaves(variables["params"]))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
