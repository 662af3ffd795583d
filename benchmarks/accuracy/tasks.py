"""Small training problems: the held-out tasks, and the tasks on which budgeted_sam was developed.

Changing a held-out task would make all recorded scores incomparable. No method was designed or
adjusted on the tasks in ``UNSEEN``. ``budgeted_sam`` and ARSAM had been seen on the other held-out
tasks, and two design choices (two micro-batches, ρ = 0.009 ‖w₀‖) were made on some of them.
"""

import functools
import math
import pathlib
import sysconfig
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.accuracy import networks
from benchmarks.accuracy.networks import MLP, NUM_CLASSES, ResNet
from examples.common.image_sets import add_symmetric_noise, fashion_mnist
from examples.language import data as texts

Arrays = tuple[np.ndarray, np.ndarray]
TEST_SHARE = 0.35  # of the data sets without a test set of their own


class Source(NamedTuple):
    """Functions that return inputs and targets: the training examples and the test examples."""

    train: Callable[[], Arrays]
    test: Callable[[], Arrays]


class Setting(NamedTuple):
    """The tuned hyperparameters: numbers, or arrays of them."""

    rho: Any
    learning_rate: Any
    weight_decay: Any


class Objective(NamedTuple):
    """The training loss and the reported score."""

    losses: Callable[[Any, Any], Any]  # (outputs, targets) -> (batch,)
    score: Callable[[Any, Any], Any]  # (outputs, targets) -> at most 1; higher is better


def _saved_bits(logits, targets):
    """1 − bits per byte / 8."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
    return 1 - loss / (8 * math.log(2))


CLASSES = Objective(
    losses=optax.softmax_cross_entropy_with_integer_labels,
    score=lambda logits, labels: (logits.argmax(-1) == labels).mean(),
)
BYTES = Objective(
    losses=lambda logits, targets: optax.softmax_cross_entropy_with_integer_labels(
        logits, targets
    ).mean(-1),
    score=_saved_bits,
)
NUMBERS = Objective(  # the score is R²
    losses=lambda outputs, targets: jnp.square(outputs[:, 0] - targets),
    score=lambda outputs, targets: 1 - jnp.square(outputs[:, 0] - targets).mean() / targets.var(),
)


class Task(NamedTuple):
    """A training problem and the setting from which the search starts."""

    description: str  # a few words for tables
    source: Source
    network: nn.Module  # network(x, train) returns logits, or what the objective takes
    num_train: int  # the size of the random training subset, another one for each seed
    num_validation: int  # training examples that the search holds out, with clean labels
    epochs: int  # Incomplete batches are dropped.
    setting: Setting  # the start of the search
    seconds: float = 1  # the approximate duration of a run of the base optimizer on one core
    noise: float = 0.0  # the share of training labels that are wrong (symmetric noise)
    base: Literal["sgd", "adamw"] = "sgd"  # with momentum 0.9 and coupled decay, or AdamW
    batch_size: int = 64
    objective: Objective = CLASSES
    schedule: Literal["cosine", "stable"] = "cosine"  # to 0, or up, constant and down
    augment: Callable[[Any, Any], Any] | None = None  # (key, x) -> x
    pretraining: "Task | None" = None  # its trained network, of the same seed, is the initial value
    num_classes: int = NUM_CLASSES  # from which noisy labels are drawn
    num_microbatches: int = 1  # on which the gradient is computed


class Data(NamedTuple):
    """Training examples with noisy labels, and held-out examples with clean ones."""

    x: np.ndarray
    labels: np.ndarray
    held_out_x: np.ndarray
    held_out_labels: np.ndarray


def make_data(task: Task, seed: int, held_out: Literal["validation", "test"]) -> Data:
    """The data of a run. "validation" holds out training examples and never reads the test set."""
    rng = np.random.default_rng([seed, 1])
    x, labels = task.source.train()
    order = rng.permutation(len(x))
    if held_out == "validation":
        order, held = np.split(order, [-task.num_validation])
        held_out_x, held_out_labels = x[held], labels[held]
    else:
        held_out_x, held_out_labels = task.source.test()
    kept = order[: task.num_train]
    labels = labels[kept]
    if task.noise:
        labels = add_symmetric_noise(labels, task.noise, task.num_classes, rng)
    return Data(x[kept], labels, held_out_x, held_out_labels)


@functools.cache
def _mnist1d(seed: int = 42) -> dict[str, np.ndarray]:
    """4,000 training examples, ``x`` and ``y``, and 6,000 test examples."""
    from mnist1d.data import get_dataset_args, make_dataset

    args: Any = get_dataset_args()
    args.num_samples, args.train_split, args.seed = 10_000, 0.4, seed
    return make_dataset(args)


def _signals(suffix: str) -> Arrays:
    data = _mnist1d()
    x, labels = data["x" + suffix], data["y" + suffix]
    return x[..., None].astype(np.float32), labels.astype(np.int32)


def _reversed_signals() -> Arrays:
    """Other examples of MNIST-1D, reversed in time, for pretraining."""
    data = _mnist1d(seed=43)
    return data["x"][:, ::-1, None].astype(np.float32), data["y"].astype(np.int32)


@functools.cache
def _fashion(part: str) -> Arrays:
    images, labels = fashion_mnist(part)
    return (images / np.float32(255) - 0.286) / 0.353, labels.astype(np.int32)


@functools.cache
def _text(part: str) -> Arrays:
    windows = texts.windows(texts.read(None, "prose"), networks.WINDOW)[part].astype(np.int32)
    windows = windows[:1000] if part == "test" else windows
    return windows[:, :-1], windows[:, 1:]


# Of the standard library, the ten classes of `text_classes`.
MODULES = "_pydecimal argparse doctest inspect mailbox pdb pickle tarfile turtle typing"


@functools.cache
def _code(part: str) -> Arrays:
    """Pieces of 48 bytes of program code and the module that each is from."""
    x, labels = [], []
    for label, name in enumerate(MODULES.split()):
        source = pathlib.Path(sysconfig.get_paths()["stdlib"], f"{name}.py").read_bytes()
        pieces = texts.windows(source, 48)[part][:, 1:]
        x.append(pieces)
        labels.append(np.full(len(pieces), label))
    return np.concatenate(x).astype(np.int32), np.concatenate(labels).astype(np.int32)


@functools.cache
def _scikit_learn(name: str, part: str) -> Arrays:
    """A part of a data set of scikit-learn, with inputs of mean 0 and variance 1."""
    from sklearn import datasets

    x, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, labels = x[order], labels[order].astype(np.int32)
    cut = round((1 - TEST_SHARE) * len(x))
    mean, deviation = x[:cut].mean(0), x[:cut].std(0)
    x = ((x - mean) / np.where(deviation > 0, deviation, 1)).astype(np.float32)
    return (x[:cut], labels[:cut]) if part == "train" else (x[cut:], labels[cut:])


def _digit_images(part: str) -> Arrays:
    x, labels = _scikit_learn("digits", part)
    return x.reshape(-1, 8, 8, 1), labels


@functools.cache
def _friedman(count: int, noise: float, seed: int) -> Arrays:
    """Friedman's first regression problem, with targets of variance close to 1."""
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(count, n_features=10, noise=noise, random_state=seed)
    return (2 * x - 1).astype(np.float32), ((y - 14.4) / 5).astype(np.float32)


@functools.cache
def _diabetes(part: str) -> Arrays:
    """Ten measurements of 442 patients, and the progress of the disease a year later."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (20 * x[order]).astype(np.float32), y[order]
    cut = round((1 - TEST_SHARE) * len(x))
    y = ((y - y[:cut].mean()) / y[:cut].std()).astype(np.float32)
    return (x[:cut], y[:cut]) if part == "train" else (x[cut:], y[cut:])


@functools.cache
def _clusters(part: str) -> Arrays:
    """Five classes of three clusters each, in 10 of 40 dimensions."""
    from sklearn.datasets import make_classification

    points: Any = make_classification(
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
    x, labels = points[0].astype(np.float32), points[1].astype(np.int32)
    return (x[:3000], labels[:3000]) if part == "train" else (x[3000:], labels[3000:])


def _shift(key: jax.Array, x: Any) -> Any:
    """Rolls each signal by up to 4 places."""
    shifts = jax.random.randint(key, (len(x),), -4, 5)
    return jax.vmap(lambda row, shift: jnp.roll(row, shift, 0))(x, shifts)


def _parts(read: Callable[[str], Arrays]) -> Source:
    return Source(lambda: read("train"), lambda: read("test"))


SIGNALS = Source(lambda: _signals(""), lambda: _signals("_test"))
FASHION = _parts(_fashion)
TEXT = _parts(_text)
SIGNAL_NETWORK = ResNet(stem=(5,), stem_strides=2, kernel=(5,))

DEVELOPMENT = {
    "m1d_cnn_noisy": Task(
        "CNN on signals, 40 % label noise",
        source=SIGNALS,
        network=SIGNAL_NETWORK,
        noise=0.4,
        num_train=4000,
        num_validation=800,
        epochs=30,
        setting=Setting(rho=0.2, learning_rate=0.2, weight_decay=5e-4),
        seconds=3,
    ),
    "fmnist_mlp_noisy": Task(
        "MLP on 5,000 images, 40 % label noise",
        source=FASHION,
        network=MLP((128, 128)),
        noise=0.4,
        num_train=5000,
        num_validation=5000,
        epochs=30,
        setting=Setting(rho=0.2, learning_rate=0.02, weight_decay=5e-4),
        seconds=2,
    ),
    "m1d_mlp_clean": Task(
        "MLP on signals",
        source=SIGNALS,
        network=MLP((100, 100)),
        num_train=4000,
        num_validation=800,
        epochs=60,
        setting=Setting(rho=0.3, learning_rate=0.2, weight_decay=5e-4),
    ),
    "fmnist_cnn_clean": Task(
        "CNN on 3,000 images",
        source=FASHION,
        network=ResNet(stem=(4, 4), stem_strides=4, kernel=(3, 3)),
        num_train=3000,
        num_validation=5000,
        epochs=20,
        setting=Setting(rho=0.2, learning_rate=0.1, weight_decay=5e-4),
        seconds=4,
    ),
    "fmnist_vit_noisy": Task(
        "transformer on 3,000 images, 40 % label noise",
        source=FASHION,
        network=networks.VisionTransformer(patch=7, width=32, depth=2, heads=2),
        noise=0.4,
        num_train=3000,
        num_validation=5000,
        epochs=20,
        setting=Setting(rho=0.2, learning_rate=3e-3, weight_decay=0.05),
        base="adamw",
        seconds=5,
    ),
}

_NOISY_SIGNALS = Task(
    "",
    source=SIGNALS,
    network=SIGNAL_NETWORK,
    noise=0.4,
    num_train=3200,
    num_validation=800,
    epochs=20,
    setting=Setting(rho=0.1, learning_rate=0.1, weight_decay=5e-4),
    seconds=3,
)
_NOISY_DIGITS = Task(
    "MLP on digits, 40 % label noise, 300 epochs",
    source=_parts(functools.partial(_scikit_learn, "digits")),
    network=MLP((64,)),
    noise=0.4,
    num_train=900,
    num_validation=260,
    epochs=300,
    setting=Setting(rho=0.2, learning_rate=0.02, weight_decay=5e-4),
    seconds=2,
)
SEEN = {
    "language": Task(
        "language model on 32 kB of English",
        source=TEXT,
        network=networks.LanguageModel(),
        num_train=1000,
        num_validation=500,
        epochs=20,
        setting=Setting(rho=0.05, learning_rate=4e-3, weight_decay=0.1),
        seconds=6,
        base="adamw",
        batch_size=32,
        objective=BYTES,
    ),
    "fine_tuning": _NOISY_SIGNALS._replace(
        description="pretrained CNN on 1,000 signals, 40 % label noise",
        num_train=1000,
        setting=Setting(rho=0.05, learning_rate=0.02, weight_decay=5e-4),
        seconds=2,
        pretraining=_NOISY_SIGNALS._replace(
            source=Source(_reversed_signals, _reversed_signals), noise=0.0, epochs=10
        ),
    ),
    "tabular": Task(
        "MLP on 30 columns of 270 patients, 30 % label noise",
        source=_parts(functools.partial(_scikit_learn, "breast_cancer")),
        network=MLP((64, 64), outputs=2),
        noise=0.3,
        num_train=270,
        num_validation=100,
        epochs=60,
        setting=Setting(rho=0.1, learning_rate=2e-3, weight_decay=0.05),
        base="adamw",
        batch_size=32,
        num_classes=2,
    ),
    "augmented_cnn": _NOISY_SIGNALS._replace(
        description="CNN on shifted signals, 40 % label noise", augment=_shift
    ),
    "regression": Task(
        "MLP on Friedman's regression problem",
        source=Source(lambda: _friedman(800, 2.0, 0), lambda: _friedman(2000, 0.0, 1)),
        network=MLP((64, 64), outputs=1),
        num_train=400,
        num_validation=400,
        epochs=60,
        setting=Setting(rho=0.1, learning_rate=0.02, weight_decay=5e-4),
        batch_size=32,
        objective=NUMBERS,
    ),
    "long_run": _NOISY_DIGITS,
    "large_batch": _NOISY_SIGNALS._replace(
        description="CNN on signals, batches of 512, 40 % label noise",
        batch_size=512,
        epochs=40,
        setting=Setting(0.1, 0.2, 5e-4),
        seconds=4,
    ),
    "stable_rate": _NOISY_SIGNALS._replace(
        description="CNN on signals, constant learning rate, 40 % label noise", schedule="stable"
    ),
    "large_mlp": _NOISY_DIGITS._replace(
        description="MLP of 1.1M parameters on digits, 40 % label noise",
        network=MLP((1024, 1024)),
        epochs=30,
        seconds=4,
    ),
}
UNSEEN = {
    "recurrent": Task(
        "GRU on 2,000 images, 30 % label noise",
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
    "text_classes": Task(
        "CNN on program code, ten modules",
        source=_parts(_code),
        network=networks.TextCNN(),
        num_train=4000,
        num_validation=1000,
        epochs=15,
        setting=Setting(rho=0.1, learning_rate=2e-3, weight_decay=0.01),
        base="adamw",
    ),
    "mixer": Task(
        "MLP-Mixer on 1,000 images",
        source=FASHION,
        network=networks.Mixer(),
        num_train=1000,
        num_validation=2000,
        epochs=40,
        setting=Setting(rho=0.1, learning_rate=4e-3, weight_decay=0.05),
        seconds=3,
        base="adamw",
        schedule="stable",
    ),
    "clusters": Task(
        "MLP with LayerNorm on generated clusters, 20 % label noise",
        source=_parts(_clusters),
        network=networks.NormalizedMLP((128, 128), outputs=5),
        noise=0.2,
        num_train=2000,
        num_validation=1000,
        epochs=40,
        setting=Setting(rho=0.1, learning_rate=0.05, weight_decay=5e-4),
        num_classes=5,
    ),
    "group_norm": Task(
        "CNN with GroupNorm on digits, 20 % label noise",
        source=_parts(_digit_images),
        network=networks.GroupCNN(),
        noise=0.2,
        num_train=900,
        num_validation=260,
        epochs=40,
        setting=Setting(rho=0.1, learning_rate=0.05, weight_decay=5e-4),
        batch_size=32,
    ),
    "diabetes": Task(
        "MLP on measurements of 200 patients, regression",
        source=_parts(_diabetes),
        network=MLP((64, 64), outputs=1),
        num_train=200,
        num_validation=80,
        epochs=100,
        setting=Setting(rho=0.1, learning_rate=0.01, weight_decay=5e-4),
        batch_size=20,
        objective=NUMBERS,
        schedule="stable",
    ),
    "attention": Task(
        "transformer on signals, 20 % label noise",
        source=SIGNALS,
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
    "little_text": Task(
        "language model on 10 kB of English, 80 epochs",
        source=TEXT,
        network=networks.LanguageModel(),
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
HELD_OUT = SEEN | UNSEEN
LISTS = {"held-out": HELD_OUT, "development": DEVELOPMENT}
TASKS = HELD_OUT | DEVELOPMENT
