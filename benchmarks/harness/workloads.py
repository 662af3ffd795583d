"""Trainings that take seconds on one core, and the five on which methods were developed."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import numpy as np
import optax

from benchmarks.harness.networks import MLP, NUM_CLASSES, ResNet, VisionTransformer

Arrays = tuple[np.ndarray, np.ndarray]


class Source(NamedTuple):
    """Where examples come from: ``train() -> (x, labels)``, and ``test()`` apart from it."""

    train: Callable[[], Arrays]
    test: Callable[[], Arrays]


class Setting(NamedTuple):
    """What is tuned: numbers, or arrays of them."""

    rho: Any
    learning_rate: Any
    weight_decay: Any


class Objective(NamedTuple):
    """What is minimised, and what is reported.

    Attributes:
      losses: ``(outputs, targets) -> (batch,)``.
      score: ``(outputs, targets) -> score``, at most 1, the higher the better.
    """

    losses: Callable[[Any, Any], Any]
    score: Callable[[Any, Any], Any]


CLASSES = Objective(
    losses=optax.softmax_cross_entropy_with_integer_labels,
    score=lambda logits, labels: (logits.argmax(-1) == labels).mean(),
)


class Term(NamedTuple):
    """What is added to the loss, with a state of its own.

    Attributes:
      init: ``(params, num_examples) -> state``.
      loss: ``(state, index, epoch, outputs, outputs_of) -> scalar``: ``index`` says which examples
        these are, ``outputs_of(params)`` are theirs at other parameters.
      next: ``(state, index, epoch, outputs, params) -> state``, after the step.
    """

    init: Callable[..., Any]
    loss: Callable[..., Any]
    next: Callable[..., Any]


class Workload(NamedTuple):
    """One training problem and the setting around which methods are tuned on it.

    Attributes:
      source: of the examples.
      network: the module; ``network(x, train)`` gives logits, or what ``objective`` takes.
      noise: the share of wrong labels in the training set, symmetric.
      num_train: a random subset of this size, another one for each seed.
      num_validation: examples of the training set that tuning holds out, without the noise that
        is added here.
      epochs: batches that are not full are dropped.
      setting: where the search starts; ``rho`` is also the radius of the reported sharpness.
      base: "sgd" (momentum 0.9, weight decay added to the gradient) or "adamw".
      seconds: of a run of the base optimizer on one core, for the estimate of the time left.
      batch_size: of a step.
      objective: loss and score.
      schedule: of the learning rate: "cosine" to 0, or "stable": warm-up over the first tenth,
        held, and falling to 0 over the last fifth.
      augment: ``(key, x) -> x`` of a mini-batch, if it is changed on the way.
      pretraining: the workload whose trained network, of the same seed, this one starts from.
      num_classes: of which wrong labels are drawn.
      num_microbatches: of which gradients are taken one after another, and handed to the method.
      averaged: the share of the run over which the parameters that are scored are averaged, with
        weights that fall exponentially; 0 scores the last ones.
      swa: SWA (arXiv 1803.05407) in place of that: an even average of the parameters after each of
        the last quarter of the epochs, the schedule its authors', which ends at this part of the
        learning rate; 0 keeps ``schedule``. None is without it.
      term: of the loss of the gradient, not of that of ``grad_fn``.
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
    objective: Objective = CLASSES
    schedule: Literal["cosine", "stable"] = "cosine"
    augment: Callable[[Any, Any], Any] | None = None
    pretraining: "Workload | None" = None
    num_classes: int = NUM_CLASSES
    num_microbatches: int = 1
    averaged: float = 0.0
    swa: float | None = None
    term: Term | None = None


class Data(NamedTuple):
    """Training examples with noisy labels, held-out examples with clean ones."""

    x: np.ndarray
    labels: np.ndarray
    held_out_x: np.ndarray
    held_out_labels: np.ndarray


@functools.cache
def mnist1d(seed: int = 42) -> dict[str, np.ndarray]:
    """4,000 training examples, ``x`` and ``y``, and 6,000 for tests, ``x_test`` and ``y_test``."""
    from mnist1d.data import get_dataset_args, make_dataset

    args: Any = get_dataset_args()
    args.num_samples, args.train_split, args.seed = 10_000, 0.4, seed
    return make_dataset(args)


def _mnist1d_part(suffix: str) -> Arrays:
    data = mnist1d()
    x, labels = data["x" + suffix], data["y" + suffix]
    return x[..., None].astype(np.float32), labels.astype(np.int32)


@functools.cache
def _fashion_mnist_part(name: str) -> Arrays:
    from examples.common.image_sets import fashion_mnist

    images, labels = fashion_mnist(name)
    return (images / np.float32(255) - 0.286) / 0.353, labels.astype(np.int32)


MNIST_1D = Source(lambda: _mnist1d_part(""), lambda: _mnist1d_part("_test"))
FASHION = Source(lambda: _fashion_mnist_part("train"), lambda: _fashion_mnist_part("test"))

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
        network=VisionTransformer(patch=7, width=32, depth=2, heads=2),
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
    from examples.common.image_sets import add_symmetric_noise

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
    if workload.noise:
        labels = add_symmetric_noise(labels, workload.noise, workload.num_classes, rng)
    return Data(x[kept], labels, held_out_x, held_out_labels)
