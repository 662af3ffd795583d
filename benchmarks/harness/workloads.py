"""Trainings that take seconds on one core and on which SAM clearly beats its base optimizer.

A training is a function of (workload, method, price, seed, radius, learning rate, weight decay):
the data subset, the label noise, the initialisation and the order all follow from the seed.
"""

import functools
import gzip
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import arsam_jax
from arsam_jax import measure
from arsam_jax.convolutions import fast_convolutions

NUM_CLASSES = 10
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # Debian: dataset-fashion-mnist
MEASURED_EXAMPLES = 256  # of the training set: curvature and sharpness are taken on these

Arrays = tuple[np.ndarray, np.ndarray]
MakeLink = Callable[..., optax.GradientTransformationExtraArgs]


class Source(NamedTuple):
    """Where examples come from: ``train() -> (x, labels)``, and ``test()`` apart from it."""

    train: Callable[[], Arrays]
    test: Callable[[], Arrays]


class Setting(NamedTuple):
    """What is tuned: numbers, or arrays of them."""

    rho: Any
    learning_rate: Any
    weight_decay: Any


class Workload(NamedTuple):
    """One training problem and the setting around which methods are tuned on it.

    Attributes:
      source: of the examples.
      network: the module; ``network(x, train)`` gives logits.
      noise: the share of wrong labels in the training set, symmetric.
      num_train: a random subset of this size, another one for each seed.
      num_validation: examples of the training set that tuning holds out, with clean labels.
      epochs: batches that are not full are dropped.
      setting: where the search starts; ``rho`` is also the radius of the reported sharpness.
      base: "sgd" (momentum 0.9, weight decay added to the gradient) or "adamw".
      seconds: of a run of the base optimizer on one core, for the estimate of the time left.
      batch_size: of a step.
    """

    source: Source
    network: nn.Module
    noise: float
    num_train: int
    num_validation: int
    epochs: int
    setting: Setting
    seconds: float
    base: Literal["sgd", "adamw"] = "sgd"
    batch_size: int = 64


class Data(NamedTuple):
    """Training examples with noisy labels, held-out examples with clean ones."""

    x: np.ndarray
    labels: np.ndarray
    held_out_x: np.ndarray
    held_out_labels: np.ndarray


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


class MLP(nn.Module):
    """Dense layers with ReLU."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x, train):
        x = x.reshape(len(x), -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width, kernel_init=nn.initializers.he_normal())(x))
        return nn.Dense(NUM_CLASSES, kernel_init=nn.initializers.he_normal())(x)


class ResNet(nn.Module):
    """Stem, residual blocks of 16 and 32 channels (the second with stride 2), global mean."""

    stem: tuple[int, ...]
    stem_strides: int
    kernel: tuple[int, ...]

    @nn.compact
    def __call__(self, x, train):
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        conv = functools.partial(
            nn.Conv, use_bias=False, kernel_init=nn.initializers.he_normal(), padding="SAME"
        )
        x = nn.relu(norm()(conv(16, self.stem, self.stem_strides)(x)))
        for width, stride in ((16, 1), (32, 2)):
            y = nn.relu(norm()(conv(width, self.kernel, stride)(x)))
            y = norm()(conv(width, self.kernel)(y))
            if x.shape != y.shape:
                x = norm()(conv(width, [1] * len(self.kernel), stride)(x))
            x = nn.relu(x + y)
        x = x.mean(tuple(range(1, x.ndim - 1)))
        return nn.Dense(NUM_CLASSES, kernel_init=nn.initializers.he_normal())(x)


class ViT(nn.Module):
    """A small vision transformer, LayerNorm first, mean over the tokens."""

    patch: int = 7
    width: int = 32
    blocks: int = 2
    heads: int = 2

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(self.width, (self.patch, self.patch), self.patch, padding="VALID")(x)
        x = x.reshape(len(x), -1, self.width)
        x = x + self.param("position", nn.initializers.normal(0.02), x.shape[1:])
        for _ in range(self.blocks):
            x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
            y = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(y)
        return nn.Dense(NUM_CLASSES)(nn.LayerNorm()(x).mean(1))


@functools.cache
def _mnist1d():
    from mnist1d.data import get_dataset_args, make_dataset

    args: Any = get_dataset_args()
    args.num_samples, args.train_split, args.seed = 10_000, 0.4, 42
    return make_dataset(args)


def _mnist1d_part(suffix: str) -> Arrays:
    data = _mnist1d()
    x, labels = data["x" + suffix], data["y" + suffix]
    return x[..., None].astype(np.float32), labels.astype(np.int32)


@functools.cache
def _fashion_mnist_part(name: str) -> Arrays:
    def read(kind: str, header: int) -> np.ndarray:
        path = FASHION_MNIST / f"{name}-{kind}-ubyte.gz"
        return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)

    images = read("images-idx3", 16).reshape(-1, 28, 28, 1)
    return (images / np.float32(255) - 0.286) / 0.353, read("labels-idx1", 8).astype(np.int32)


MNIST_1D = Source(lambda: _mnist1d_part(""), lambda: _mnist1d_part("_test"))
FASHION = Source(lambda: _fashion_mnist_part("train"), lambda: _fashion_mnist_part("t10k"))

WORKLOADS = {
    "m1d_cnn_noisy": Workload(
        source=MNIST_1D,
        network=ResNet(stem=(5,), stem_strides=2, kernel=(5,)),
        noise=0.4,
        num_train=4000,
        num_validation=800,
        epochs=30,
        setting=Setting(rho=0.2, learning_rate=0.2, weight_decay=5e-4),
        seconds=3,
    ),
    "fmnist_mlp_noisy": Workload(
        source=FASHION,
        network=MLP((128, 128)),
        noise=0.4,
        num_train=5000,
        num_validation=5000,
        epochs=30,
        setting=Setting(rho=0.2, learning_rate=0.02, weight_decay=5e-4),
        seconds=2,
    ),
    "m1d_mlp_clean": Workload(
        source=MNIST_1D,
        network=MLP((100, 100)),
        noise=0.0,
        num_train=4000,
        num_validation=800,
        epochs=60,
        setting=Setting(rho=0.3, learning_rate=0.2, weight_decay=5e-4),
        seconds=1,
    ),
    "fmnist_cnn_clean": Workload(
        source=FASHION,
        network=ResNet(stem=(4, 4), stem_strides=4, kernel=(3, 3)),
        noise=0.0,
        num_train=3000,
        num_validation=5000,
        epochs=20,
        setting=Setting(rho=0.2, learning_rate=0.1, weight_decay=5e-4),
        seconds=4,
    ),
    "fmnist_vit_noisy": Workload(
        source=FASHION,
        network=ViT(),
        noise=0.4,
        num_train=3000,
        num_validation=5000,
        epochs=20,
        setting=Setting(rho=0.2, learning_rate=3e-3, weight_decay=0.05),
        base="adamw",
        seconds=5,
    ),
}


def make_data(workload: Workload, seed: int, held_out: Literal["validation", "test"]) -> Data:
    """The data of a run. "validation" never reads the test set.

    Of a random permutation of the training set, "validation" holds out the last
    ``num_validation`` examples and trains on the first ``num_train`` of the others (fewer, where
    that is all there is); "test" trains on the first ``num_train`` and holds out the test set.
    """
    rng = np.random.default_rng([seed, 1])
    x, labels = workload.source.train()
    order = rng.permutation(len(x))
    if held_out == "validation":
        order, held = np.split(order, [-workload.num_validation])
        held_out_x, held_out_labels = x[held], labels[held]
    else:
        held_out_x, held_out_labels = workload.source.test()
    kept = order[: workload.num_train]
    labels = labels[kept]
    is_wrong = rng.random(len(labels)) < workload.noise
    others = (labels + rng.integers(1, NUM_CLASSES, len(labels))) % NUM_CLASSES
    noisy = np.where(is_wrong, others, labels).astype(np.int32)
    return Data(x[kept], noisy, held_out_x, held_out_labels)


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
