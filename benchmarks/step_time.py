"""What a step costs: ``python -m benchmarks.step_time --help``.

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
from typing import Annotated, Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    models: tuple[Literal["cnn", "mlp"], ...] = ("cnn", "mlp")
    batch_size: int = 128
    pairs: int = 60
    """Interleaved pairs of steps of each comparison."""
    cores: int = 1
    """Cores to pin this process to; 0 leaves it as it is."""
    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("benchmarks/step_time.csv")
    """Rows are appended to this file."""


COMPARISONS = (
    # what, in units of, the limit that the project holds itself to
    ("arsam plain step", "sgd", 1.03),
    ("arsam reuse step", "sgd", 1.03),
    ("arsam sampled step", "optax.contrib.sam", 1.03),
    ("sam", "optax.contrib.sam", 1.03),
    ("optax.contrib.sam", "sgd", None),
    ("sgd", "sgd again", None),  # the noise of the method
)


def main(options: Options) -> None:
    if options.cores:  # before jax starts its threads
        available = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, available[-options.cores :])
    import jax

    import arsam_jax

    device = jax.devices()[0].device_kind
    versions = f"jax {jax.__version__}, arsam_jax {arsam_jax.__version__}"
    rows = []
    for model in options.models:
        steps = make_steps(model, options.batch_size)
        for step in steps.values():
            step()
        print(f"\n{model}, batch {options.batch_size}, {options.cores or 'all'} core(s), {device}")
        print(f"{'step':22}{'in units of':20}{'ratio':>8}{'quartiles':>16}{'ms':>9}{'limit':>7}")
        for name, unit, limit in COMPARISONS:
            ratios, milliseconds = compare(steps[name], steps[unit], options.pairs)
            low, median, high = statistics.quantiles(ratios, n=4)
            print(
                f"{name:22}{unit:20}{median:8.3f}{f'{low:.3f}-{high:.3f}':>16}"
                f"{milliseconds:9.2f}{limit or '':>7}"
            )
            rows.append(
                {
                    "date": time.strftime("%Y-%m-%d"),
                    "device": device,
                    "cores": options.cores,
                    "versions": versions,
                    "model": model,
                    "batch_size": options.batch_size,
                    "step": name,
                    "unit": unit,
                    "ratio_median": f"{median:.4f}",
                    "ratio_low_quartile": f"{low:.4f}",
                    "ratio_high_quartile": f"{high:.4f}",
                    "step_milliseconds": f"{milliseconds:.3f}",
                    "pairs": options.pairs,
                }
            )
    is_new = not options.csv.exists()
    with options.csv.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def compare(
    step: Callable[[], None], unit: Callable[[], None], pairs: int
) -> tuple[list[float], float]:
    """The ratios of ``pairs`` pairs and the median time of ``step`` in milliseconds.

    Which of the two goes first alternates, so that neither is always the one with a warm cache.
    """

    def seconds(function):
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    for _ in range(3):
        step()
        unit()
    ratios, times = [], []
    for i in range(pairs):
        if i % 2:
            a, b = seconds(step), seconds(unit)
        else:
            b, a = seconds(unit), seconds(step)
        ratios.append(a / b)
        times.append(1000 * a)
    return ratios, statistics.median(times)


def make_steps(model: str, batch_size: int) -> dict[str, Callable[[], None]]:
    """Functions of nothing that take one step each and wait for it."""
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

    network = {"mlp": MLP, "cnn": CNN}[model]()
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
        @jax.jit(donate_argnums=(0, 1, 2))
        def train_step(params, batch_stats, opt_state):
            grads, new_batch_stats, loss = gradient(params, batch_stats)
            updates, opt_state = tx.update(
                grads,
                opt_state,
                params,
                grad_fn=lambda params, *_: gradient(params, batch_stats)[0],
            )
            return optax.apply_updates(params, updates), new_batch_stats, opt_state, loss

        copy = lambda tree: jax.tree.map(jnp.copy, tree)  # noqa: E731
        params = copy(variables["params"])
        state = [params, copy(variables.get("batch_stats", {})), prepare(tx.init(params))]

        def step():
            state[0], state[1], state[2], _ = jax.block_until_ready(train_step(*state))

        return step

    learning_rate, rho = 1e-3, 0.05
    sgd = optax.sgd(learning_rate, momentum=0.9)
    plain_sgd = optax.with_extra_args_support(sgd)
    never = {"initial_samples": 0, "min_samples": 0}
    every = {"initial_samples": 50, "min_samples": 50}

    def just_sampled(opt_state):
        return (opt_state[0]._replace(age=jnp.zeros([], jnp.int32)), *opt_state[1:])

    def chain(link):
        return optax.chain(link, sgd)

    return {
        "sgd": make_step(plain_sgd),
        "sgd again": make_step(plain_sgd),
        "optax.contrib.sam": make_step(
            optax.contrib.sam(
                sgd, optax.chain(optax.contrib.normalize(), optax.sgd(rho)), opaque_mode=True
            )
        ),
        "sam": make_step(chain(arsam_jax.sam(rho))),
        "arsam sampled step": make_step(chain(arsam_jax.arsam(rho, 0.4, **every))),
        "arsam reuse step": make_step(
            chain(arsam_jax.arsam(rho, 0.4, reuse_steps=None, **never)), prepare=just_sampled
        ),
        "arsam plain step": make_step(chain(arsam_jax.arsam(rho, 0.4, **never))),
    }


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
