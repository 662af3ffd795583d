"""One training of a workload: a function of method, price, seed, radius, rate and weight decay.

The data subset, the label noise, the initialisation and the order all follow from the seed.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import arsam_jax
from arsam_jax import measure
from arsam_jax.convolutions import fast_convolutions
from benchmarks.harness.workloads import Data, Setting, Workload, make_data

MEASURED_EXAMPLES = 256  # of the training set: curvature and sharpness are taken on these

MakeLink = Callable[..., optax.GradientTransformationExtraArgs]


class Result(NamedTuple):
    """What one run reports. Accuracies in %."""

    accuracy: float
    sampled_share: float
    train_loss: float
    top_hessian_eigenvalue: float
    sharpness: float
    seconds_per_step: float
    peak_bytes: int
    steps: int


def train(
    workload: Workload,
    make_link: MakeLink,
    share: float,
    setting: Setting,
    seed: int,
    held_out: Literal["validation", "test"],
) -> Result:
    """Trains once and evaluates on the held-out examples.

    What depends on neither setting nor seed is compiled once: runs of one method and share should
    follow one another.
    """
    data = make_data(workload, seed, held_out)
    compiled = _compile(workload, make_link, share, data.x.shape)
    order = _order(workload, len(data.x), seed)
    hyper = Setting(*(jnp.float32(value) for value in setting))
    run_seed = jnp.uint32(seed)
    x, labels = jnp.asarray(data.x), jnp.asarray(data.labels)
    state = compiled.init(run_seed, hyper, x)
    jax.block_until_ready((state, x, labels))
    start = time.perf_counter()
    state, losses = jax.block_until_ready(
        compiled.run(state, run_seed, hyper, x, labels, jnp.asarray(order))
    )
    seconds = time.perf_counter() - start
    variables, opt_state = state[:2], state[2]
    correct = _correct(workload.network, variables, data.held_out_x, data.held_out_labels)
    eigenvalue = sharpness = float("nan")
    if held_out == "test":
        part = slice(MEASURED_EXAMPLES)
        eigenvalue, sharpness = _curvature(
            workload.network, variables, x[part], labels[part], workload.setting.rho
        )
    steps = len(order)
    return Result(
        accuracy=100 * float(correct),
        sampled_share=int(arsam_jax.get_metrics(opt_state).num_sampled) / steps,
        train_loss=float(losses[-steps // workload.epochs :].mean()),
        top_hessian_eigenvalue=float(eigenvalue),
        sharpness=float(sharpness),
        seconds_per_step=seconds / steps,
        peak_bytes=compiled.peak_bytes,
        steps=steps,
    )


def _order(workload: Workload, num_train: int, seed: int) -> np.ndarray:
    """The examples of each step, (steps, batch)."""
    rng = np.random.default_rng([seed, 2])
    size = workload.batch_size
    full = num_train // size * size
    orders = (rng.permutation(num_train)[:full].reshape(-1, size) for _ in range(workload.epochs))
    return np.concatenate([*orders]).astype(np.int32)


class _Compiled(NamedTuple):
    init: Callable[..., Any]
    run: Callable[..., Any]
    peak_bytes: int


@functools.lru_cache(maxsize=1)
def _compile(
    workload: Workload, make_link: MakeLink, share: float, shape: tuple[int, ...]
) -> _Compiled:
    """A whole run as one ``lax.scan`` over its steps, the setting and the seed being arguments."""
    init, run = _training(workload, make_link, share, shape[0])
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    seed, setting = jax.ShapeDtypeStruct((), jnp.uint32), Setting(*[scalar] * 3)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    labels = jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    steps = num_steps(workload, shape[0])
    order = jax.ShapeDtypeStruct((steps, workload.batch_size), jnp.int32)
    state = jax.eval_shape(init, seed, setting, x)
    compiled = jax.jit(run, donate_argnums=0).lower(state, seed, setting, x, labels, order)
    compiled = compiled.compile()
    memory: Any = compiled.memory_analysis()
    data_bytes = sum(a.size * a.dtype.itemsize for a in (x, labels, order))
    peak_bytes = memory.temp_size_in_bytes + memory.argument_size_in_bytes - data_bytes
    return _Compiled(init, compiled, peak_bytes)


def num_steps(workload: Workload, num_train: int) -> int:
    """Of a whole training on so many examples."""
    return workload.epochs * (num_train // workload.batch_size)


def _training(workload: Workload, make_link: MakeLink, share: float, num_train: int):
    """``init(seed, setting, x)`` and ``run(state, seed, setting, x, labels, order)``.

    ``run`` takes the steps whose examples are in ``order``, (steps, batch), of a whole training.
    """
    network, steps = workload.network, num_steps(workload, num_train)

    def make_optimizer(seed, setting):
        schedule = optax.cosine_decay_schedule(setting.learning_rate, steps)
        link = make_link(setting.rho, share, steps, seed)
        if workload.base == "adamw":
            return optax.chain(link, optax.adamw(schedule, weight_decay=setting.weight_decay))
        decay = optax.add_decayed_weights(setting.weight_decay)
        return optax.chain(link, decay, optax.sgd(schedule, momentum=0.9))

    @jax.jit
    def init(seed, setting, x):
        variables = network.init(jax.random.key(seed), x[:2], train=True)
        params, statistics = variables["params"], variables.get("batch_stats", {})
        return params, statistics, make_optimizer(seed, setting).init(params)

    def run(state, seed, setting, x, labels, order):
        tx = make_optimizer(seed, setting)

        @fast_convolutions
        def step(carry):
            (params, statistics, opt_state), indices = carry
            batch = x[indices], labels[indices]

            def losses_of(params, batch):
                return example_losses(network, params, statistics, batch)

            def loss_fn(params):
                losses, changed = losses_of(params, batch)
                return losses.mean(), changed

            (loss, new_statistics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
            updates, opt_state = tx.update(
                grads,
                opt_state,
                params,
                grad_fn=lambda params: jax.grad(loss_fn, has_aux=True)(params)[0],
                example_loss_fn=lambda params, b: losses_of(params, b)[0],
                batch=batch,
            )
            return (optax.apply_updates(params, updates), new_statistics, opt_state), loss

        return jax.lax.scan(lambda state, indices: step((state, indices)), state, order)

    return init, run


def snapshots(
    workload: Workload,
    make_link: MakeLink,
    setting: Setting,
    seed: int,
    data: Data,
    steps: Sequence[int],
) -> Iterator[Any]:
    """(params, batch_stats) of a training after each of these numbers of steps."""
    x, labels = jnp.asarray(data.x), jnp.asarray(data.labels)
    order = jnp.asarray(_order(workload, len(x), seed))
    init, run = _training(workload, make_link, 1, len(x))
    hyper, run_seed = Setting(*(jnp.float32(value) for value in setting)), jnp.uint32(seed)
    state, done, run = init(run_seed, hyper, x), 0, jax.jit(run)
    for step in steps:
        state, _ = run(state, run_seed, hyper, x, labels, order[done:step])
        done = step
        yield state[:2]


def example_losses(network, params, statistics, batch):
    """One loss for each example, with the statistics of the batch, and the moved running ones."""
    x, labels = batch
    logits, changed = _apply(network, params, statistics, x)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses, changed.get("batch_stats", {})


def _apply(network, params, statistics, x):
    """Logits with the statistics of the batch, and the moved running ones."""
    variables = {"params": params, "batch_stats": statistics}
    return network.apply(variables, x, train=True, mutable=["batch_stats"])


@functools.partial(jax.jit, static_argnums=0)
def _correct(network, variables, x, labels):
    params, statistics = variables
    logits = network.apply({"params": params, "batch_stats": statistics}, x, train=False)
    return (logits.argmax(-1) == labels).mean()


@functools.partial(jax.jit, static_argnums=0)
def _curvature(network, variables, x, labels, rho):
    """Top Hessian eigenvalue and ρ-sharpness of the training loss, statistics of the batch."""
    params, statistics = variables

    def loss_fn(params):
        return example_losses(network, params, statistics, (x, labels))[0].mean()

    eigenvalue = measure.top_hessian_eigenvalue(loss_fn, params, num_iterations=15)
    return eigenvalue, measure.sharpness(loss_fn, params, rho)
