"""Trainings on which no method was made, of kinds that the five for development lack.

Only SGD and SAM are tuned on them. They stay as they are: a change makes every figure of this study
another one. There are two sets. Methods were seen on ``FIRST`` before ``budgeted_m_sam`` got its
micro-batches and its radius, on ``SECOND`` none was.

Not all of their data are new. MNIST-1D is that of two of the five, with other schedules, batches,
networks, augmentation or a start from a checkpoint, and Fashion-MNIST that of the other three, with
other networks; digits are those of the demo, on which ``budgeted_sam`` got its bound for samples
and ``momentum_sam`` its 5 ρ. Texts, patients, Friedman's problem and the clusters had been seen by
nothing.
"""

import functools
import math
import pathlib
import sysconfig
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness.networks import MLP, ResNet
from benchmarks.harness.workloads import (
    FASHION,
    MNIST_1D,
    Arrays,
    Objective,
    Setting,
    Source,
    Workload,
    mnist1d,
)
from benchmarks.held_out import networks
from examples.language import data as texts
from examples.language.network import Transformer

WINDOW = 32  # bytes that the language model sees
TEST_SHARE = 0.35  # of the sets that have no test set of their own


class LanguageModel(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        return Transformer(width=32, depth=2, heads=2, length=WINDOW)(x, is_training=train)


def _bits_saved(logits, targets):
    """1 − bits a byte / 8."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
    return 1 - loss / (8 * math.log(2))


def _explained(outputs, targets):
    """R²: 1 − mean squared error / variance."""
    return 1 - jnp.square(outputs[:, 0] - targets).mean() / targets.var()


BYTES = Objective(
    losses=lambda logits, targets: optax.softmax_cross_entropy_with_integer_labels(
        logits, targets
    ).mean(-1),
    score=_bits_saved,
)
NUMBERS = Objective(
    losses=lambda outputs, targets: jnp.square(outputs[:, 0] - targets), score=_explained
)


@functools.cache
def _text(part: str) -> Arrays:
    windows = texts.windows(texts.read(None, "prose"), WINDOW)[part].astype(np.int32)
    return windows[:, :-1], windows[:, 1:]


def _test_text() -> Arrays:
    x, targets = _text("test")
    return x[:1000], targets[:1000]


@functools.cache
def _split(name: str) -> tuple[Arrays, Arrays]:
    """A set of scikit-learn in a training and a test part, inputs of mean 0 and variance 1."""
    from sklearn import datasets

    x, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, labels = x[order], labels[order].astype(np.int32)
    cut = round((1 - TEST_SHARE) * len(x))
    mean, deviation = x[:cut].mean(0), x[:cut].std(0)
    x = ((x - mean) / np.where(deviation > 0, deviation, 1)).astype(np.float32)
    return (x[:cut], labels[:cut]), (x[cut:], labels[cut:])


def _scikit_learn(name: str) -> Source:
    return Source(lambda: _split(name)[0], lambda: _split(name)[1])


@functools.cache
def _friedman(count: int, noise: float, seed: int) -> Arrays:
    """Friedman's first regression problem, the target scaled to a variance of about 1."""
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(count, n_features=10, noise=noise, random_state=seed)
    return (2 * x - 1).astype(np.float32), ((y - 14.4) / 5).astype(np.float32)


@functools.cache
def _diabetes() -> tuple[Arrays, Arrays]:
    """Ten measurements of 442 patients, and the disease's progress a year later."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (20 * x[order]).astype(np.float32), y[order]
    cut = round((1 - TEST_SHARE) * len(x))
    y = ((y - y[:cut].mean()) / y[:cut].std()).astype(np.float32)
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


@functools.cache
def _clusters() -> tuple[Arrays, Arrays]:
    """Five classes of three clusters each, in 10 of 40 dimensions."""
    from sklearn.datasets import make_classification

    x, labels = make_classification(
        8000,
        n_features=40,
        n_informative=10,
        n_redundant=0,
        n_classes=5,
        n_clusters_per_class=3,
        class_sep=1.5,
        flip_y=0.0,
        random_state=7,
    )
    x, labels = x.astype(np.float32), labels.astype(np.int32)
    return (x[:3000], labels[:3000]), (x[3000:], labels[3000:])


MODULES = (  # of the standard library, the ten classes of `text_classes`
    *("_pydecimal", "argparse", "doctest", "inspect", "mailbox"),
    *("pdb", "pickle", "tarfile", "turtle", "typing"),
)


@functools.cache
def _lines_of_modules(part: str) -> Arrays:
    """Pieces of 48 bytes of program code, and which module they are from."""
    x, labels = [], []
    for label, name in enumerate(MODULES):
        source = pathlib.Path(sysconfig.get_paths()["stdlib"], f"{name}.py").read_bytes()
        pieces = texts.windows(source, 48)[part][:, 1:]
        x.append(pieces)
        labels.append(np.full(len(pieces), label))
    return np.concatenate(x).astype(np.int32), np.concatenate(labels).astype(np.int32)


@functools.cache
def _reversed_signals() -> Arrays:
    """Other examples of MNIST-1D, backwards in time: what a network is trained on beforehand."""
    data = mnist1d(seed=43)
    return data["x"][:, ::-1, None].astype(np.float32), data["y"].astype(np.int32)


def _shift(key: jax.Array, x: Any) -> Any:
    """Rolls each signal by up to 4 places."""
    shifts = jax.random.randint(key, (len(x),), -4, 5)
    return jax.vmap(lambda row, shift: jnp.roll(row, shift, 0))(x, shifts)


RESNET = ResNet(stem=(5,), stem_strides=2, kernel=(5,))
NOISY_SIGNALS = Workload(  # what the four of MNIST-1D share
    source=MNIST_1D,
    network=RESNET,
    noise=0.4,
    num_train=3200,
    num_validation=800,
    epochs=20,
    setting=Setting(rho=0.1, learning_rate=0.1, weight_decay=5e-4),
    seconds=3,
)
NOISY_DIGITS = Workload(  # what the two of digits share
    source=_scikit_learn("digits"),
    network=MLP((64,)),
    noise=0.4,
    num_train=900,
    num_validation=260,
    epochs=300,
    setting=Setting(rho=0.2, learning_rate=0.02, weight_decay=5e-4),
    seconds=2,
)

FIRST = {
    # A small language model, on English that every Python ships.
    "language": Workload(
        source=Source(lambda: _text("train"), _test_text),
        network=LanguageModel(),
        noise=0.0,
        num_train=1000,
        num_validation=500,
        epochs=20,
        setting=Setting(rho=0.05, learning_rate=4e-3, weight_decay=0.1),
        seconds=6,
        base="adamw",
        batch_size=32,
        objective=BYTES,
    ),
    # From a network that was trained on signals of the other direction.
    "fine_tuning": NOISY_SIGNALS._replace(
        num_train=1000,
        setting=Setting(rho=0.05, learning_rate=0.02, weight_decay=5e-4),
        seconds=2,
        pretraining=NOISY_SIGNALS._replace(
            source=Source(_reversed_signals, _reversed_signals), noise=0.0, epochs=10
        ),
    ),
    # 30 columns of 569 patients.
    "tabular": Workload(
        source=_scikit_learn("breast_cancer"),
        network=MLP((64, 64), outputs=2),
        noise=0.3,
        num_train=270,
        num_validation=100,
        epochs=60,
        setting=Setting(rho=0.1, learning_rate=2e-3, weight_decay=0.05),
        seconds=1,
        base="adamw",
        batch_size=32,
        num_classes=2,
    ),
    "augmented_cnn": NOISY_SIGNALS._replace(augment=_shift),
    # Numbers for targets, measured with noise, tested without.
    "regression": Workload(
        source=Source(lambda: _friedman(800, 2.0, 0), lambda: _friedman(2000, 0.0, 1)),
        network=MLP((64, 64), outputs=1),
        noise=0.0,
        num_train=400,
        num_validation=400,
        epochs=60,
        setting=Setting(rho=0.1, learning_rate=0.02, weight_decay=5e-4),
        seconds=1,
        batch_size=32,
        objective=NUMBERS,
    ),
    # Ten times as many epochs.
    "long_run": NOISY_DIGITS,
    "large_batch": NOISY_SIGNALS._replace(
        batch_size=512, epochs=40, setting=Setting(0.1, 0.2, 5e-4), seconds=4
    ),
    # Warm-up, a rate that is held, and a short fall.
    "stable_rate": NOISY_SIGNALS._replace(schedule="stable"),
    # 1.1 million parameters.
    "large_mlp": NOISY_DIGITS._replace(network=MLP((1024, 1024)), epochs=30, seconds=4),
}

SECOND = {
    # A recurrent network along the rows of an image.
    "recurrent": Workload(
        source=FASHION,
        network=networks.Recurrent(),
        noise=0.3,
        num_train=2000,
        num_validation=2000,
        epochs=20,
        setting=Setting(rho=0.1, learning_rate=4e-3, weight_decay=0.01),
        seconds=2,
        base="adamw",
        schedule="stable",
    ),
    # Which module of Python a piece of code is from. No wrong labels.
    "text_classes": Workload(
        source=Source(lambda: _lines_of_modules("train"), lambda: _lines_of_modules("test")),
        network=networks.TextCNN(),
        noise=0.0,
        num_train=4000,
        num_validation=1000,
        epochs=15,
        setting=Setting(rho=0.1, learning_rate=2e-3, weight_decay=0.01),
        seconds=1,
        base="adamw",
    ),
    # Few images and no wrong labels.
    "mixer": Workload(
        source=FASHION,
        network=networks.Mixer(),
        noise=0.0,
        num_train=1000,
        num_validation=2000,
        epochs=40,
        setting=Setting(rho=0.1, learning_rate=4e-3, weight_decay=0.05),
        seconds=3,
        base="adamw",
        schedule="stable",
    ),
    # Made-up clusters, LayerNorm, fewer wrong labels.
    "clusters": Workload(
        source=Source(lambda: _clusters()[0], lambda: _clusters()[1]),
        network=networks.NormalizedMLP((128, 128), outputs=5),
        noise=0.2,
        num_train=2000,
        num_validation=1000,
        epochs=40,
        setting=Setting(rho=0.1, learning_rate=0.05, weight_decay=5e-4),
        seconds=1,
        num_classes=5,
    ),
    # A CNN without BatchNorm, fewer wrong labels.
    "group_norm": Workload(
        source=Source(
            lambda: (_split("digits")[0][0].reshape(-1, 8, 8, 1), _split("digits")[0][1]),
            lambda: (_split("digits")[1][0].reshape(-1, 8, 8, 1), _split("digits")[1][1]),
        ),
        network=networks.GroupCNN(),
        noise=0.2,
        num_train=900,
        num_validation=260,
        epochs=40,
        setting=Setting(rho=0.1, learning_rate=0.05, weight_decay=5e-4),
        seconds=1,
        batch_size=32,
    ),
    # Real numbers for targets, few of them.
    "diabetes": Workload(
        source=Source(lambda: _diabetes()[0], lambda: _diabetes()[1]),
        network=MLP((64, 64), outputs=1),
        noise=0.0,
        num_train=200,
        num_validation=80,
        epochs=100,
        setting=Setting(rho=0.1, learning_rate=0.01, weight_decay=5e-4),
        seconds=1,
        batch_size=20,
        objective=NUMBERS,
        schedule="stable",
    ),
    # Attention on signals.
    "attention": Workload(
        source=MNIST_1D,
        network=networks.Attention(),
        noise=0.2,
        num_train=3200,
        num_validation=800,
        epochs=20,
        setting=Setting(rho=0.1, learning_rate=4e-3, weight_decay=0.05),
        seconds=3,
        base="adamw",
        schedule="stable",
    ),
    # Little text, read so often that the network knows it by heart.
    "little_text": Workload(
        source=Source(lambda: _text("train"), _test_text),
        network=LanguageModel(),
        noise=0.0,
        num_train=300,
        num_validation=500,
        epochs=80,
        setting=Setting(rho=0.05, learning_rate=4e-3, weight_decay=0.1),
        seconds=5,
        base="adamw",
        batch_size=32,
        objective=BYTES,
        schedule="stable",
    ),
}

WORKLOADS = FIRST | SECOND
