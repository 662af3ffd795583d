"""Segmentation: train a network that finds the class of each pixel with several methods.

python -m examples.segmentation                                           generated scenes
python -m examples.segmentation --method base sam --seeds 0 1 2
python -m examples.segmentation --data VOC2012 --sbd SBD --network pspnet101 ...    see README.md
"""

import dataclasses
import functools
import math
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples.common import batch_norm, comparison, optimizers, settings, weights
from examples.common.image_sets import FASHION_MNIST_FOLDER
from examples.common.pipeline import augmentation_rng
from examples.segmentation import data, evaluation
from examples.segmentation.network import NETWORKS, make_network, torch_name
from examples.segmentation.scenes import CLASSES, ITEMS, scenes

_HELD_OUT_SCENES = 400
_READ_AT_ONCE = 16  # The softmaxes of so many images fit in memory.
_DRAWN = 6
_HEAD_WEIGHTS = (1.0, 0.4)  # of the losses of the head and the auxiliary head


@dataclasses.dataclass(frozen=True)
class Options(comparison.Options):
    """Train a network that finds the class of each pixel with several methods.

    A table, all numbers and figures are written to OUTPUT/NAME. Ctrl-C saves and stops, and
    --resume continues.
    """

    epochs: int = 30
    batch_size: int = 16
    learning_rate: float = 0.1
    rho: float = 0.025

    data: Path | None = None
    """Folder VOC2012, see README.md. By default scenes are generated."""
    sbd: Path | None = None
    """Folder of the Semantic Boundaries Dataset, whose images are added to training."""
    items: str = "digits"
    """Items in generated scenes: digits or fashion_mnist."""
    data_files: Path = FASHION_MNIST_FOLDER
    """Folder of Fashion-MNIST's files."""
    scenes: int = 480
    """Number of generated scenes for training."""
    noise: float = 0.4
    """Share of the items in these scenes that are labelled as another class, in [0, 1)."""
    crop: int = 48
    """Pixels along a side of the input of the network."""
    scale: tuple[float, float] = (0.75, 1.5)
    """Smallest and largest factor by which training images are scaled before they are cropped."""
    network: str = "small"
    """small, pspnet50, pspnet101, deeplab_resnet50, deeplab_resnet101 or deeplab_mobilenet."""
    output_stride: int = 16
    """Stride of the last feature map of deeplab_*: 16 or 8."""
    weights: Path | None = None
    """File with initial weights of the backbone, see README.md."""
    backbone_rate: float = 1.0
    """Learning rate of the backbone, relative to --learning-rate."""
    window_stride: float = 2 / 3
    """Distance of the windows on test images larger than --crop, relative to --crop."""
    mirrored: bool = False
    """Average the softmax of each test image with that of its mirror image."""


class Segmentation(comparison.Task):
    """The task of segmentation, see ``comparison.Task``."""

    measures = {  # noqa: RUF012
        "mean_iou": ("mIoU", "{:.2f}"),
        "mean_accuracy": ("mean accuracy", "{:.2f}"),
        "accuracy": ("pixel accuracy", "{:.2f}"),
    }

    def __init__(self, options: Options):
        _check(options)
        self.options = options
        if options.data is None:
            held_out = "validation" if options.validation else "test"
            kind, files = options.items, options.data_files
            self.train = scenes(kind, "train", options.scenes, files, noise=options.noise)
            self.held_out = scenes(kind, held_out, _HELD_OUT_SCENES, files)
            self.num_classes = CLASSES[kind]
        else:
            self.train, self.held_out = data.voc(
                options.data, options.sbd, validation=options.validation
            )
            self.num_classes = data.VOC_CLASSES
        self.num_examples = self.train.size
        self.model = make_network(options.network, self.num_classes, options.output_stride)
        self._weights = None if options.weights is None else weights.load(options.weights)
        self._softmax = jax.jit(self._mean_softmax)

    def new_state(self, tx: optax.GradientTransformation, seed: int) -> Any:
        image = jnp.zeros((1, self.options.crop, self.options.crop, 3))
        variables = jax.jit(lambda key: self.model.init(key, image, is_training=True))(
            jax.random.key(seed)
        )
        if self._weights is not None:
            variables = weights.fill(variables, self._weights, torch_name)
        rate = self.options.backbone_rate
        rates = optimizers.multiply_rates(lambda path: rate if path[0] == "backbone" else 1.0)
        return batch_norm.TrainState.create(
            apply_fn=self.model.apply,
            tx=optax.chain(tx, rates),
            key=jax.random.PRNGKey(seed),
            **variables,
        )

    def batch(self, index: np.ndarray, step: int, seed: int) -> data.Batch:
        rng = augmentation_rng(seed, step)
        return data.batch(self.train, index, self.options.crop, self.options.scale, rng)

    def train_step(self, state: Any, batch: Any, previous: Any) -> tuple[Any, jax.Array]:
        def losses(params, batch, step=state.step):
            outputs, changed = self.model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                normalized(batch.images),
                is_training=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.fold_in(state.key, step)},
            )
            values = jnp.zeros(len(batch.labels))
            for weight, logits in zip(_HEAD_WEIGHTS, outputs, strict=False):
                values += weight * pixel_losses(logits, batch.labels)
            return values, changed["batch_stats"]

        step_before = jnp.maximum(state.step - 1, 0)
        previous_losses = functools.partial(losses, step=step_before)
        return batch_norm.train_step(state, batch, previous, losses, previous_losses)

    def evaluate(self, state: Any) -> dict[str, float]:
        return self._measure(state)

    def finish(self, state: Any, folder: Path) -> dict[str, float]:
        some = range(min(_DRAWN, self.held_out.size))
        images, labels = zip(*map(self.held_out.read, some), strict=True)
        evaluation.draw(images, labels, self._predict(state, images), folder / "predictions.png")
        return self._measure(state)

    def _measure(self, state: Any) -> dict[str, float]:
        matrix = np.zeros((self.num_classes, self.num_classes), np.int64)
        for start in range(0, self.held_out.size, _READ_AT_ONCE):
            some = range(start, min(start + _READ_AT_ONCE, self.held_out.size))
            images, labels = zip(*map(self.held_out.read, some), strict=True)
            for real, found in zip(labels, self._predict(state, images), strict=True):
                matrix += evaluation.confusion(real, found, self.num_classes)
        return evaluation.measures(matrix)

    def _predict(self, state: Any, images: Any) -> list[np.ndarray]:
        def softmax(pixels):
            return self._softmax(state.params, state.batch_stats, pixels)

        options = self.options
        return evaluation.predict(
            softmax, images, self.num_classes, options.crop, options.window_stride
        )

    def _mean_softmax(self, params, batch_stats, images):
        """Return the softmax (batch, crop, crop, classes)."""

        def softmax(images):
            variables = {"params": params, "batch_stats": batch_stats}
            outputs: Any = self.model.apply(variables, normalized(images), is_training=False)
            return jax.nn.softmax(outputs[0])

        values = softmax(images)
        if not self.options.mirrored:
            return values
        return (values + softmax(images[:, :, ::-1])[:, :, ::-1]) / 2


def pixel_losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return a loss for each example, (batch,), whose mean is the mean over all labelled pixels.

    It is the sum of the cross-entropies of the labelled pixels of an example, divided by the mean
    number of labelled pixels of an example.
    """
    counts = labels != data.IGNORED
    targets = jnp.where(counts, labels, 0).astype(jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    average = jnp.maximum(counts.sum(dtype=jnp.float32), 1) / len(labels)
    return jnp.where(counts, losses, 0).sum((1, 2)) / average


def normalized(images: jax.Array) -> jax.Array:
    """Turn bytes into the input of the network."""
    return (images - jnp.array(data.MEAN)) / jnp.array(data.DEVIATION)


def _check(options: Options) -> None:
    settings.require_known("network", (options.network,), NETWORKS)
    settings.require_known("items", (options.items,), ITEMS)
    settings.check_numbers(
        options,
        shares=("noise",),
        positive=("scenes", "crop"),
        not_negative=("backbone_rate",),
    )
    least, most = options.scale
    for is_met, message in (
        (
            options.data is not None or options.items != "digits" or not options.mirrored,
            "--mirrored is not for --items digits: mirror images of digits are not digits",
        ),
        (
            options.data is None or options.crop != Options.crop,
            f"--crop {options.crop} is for generated scenes. With --data use a larger one, such as"
            " 513, see README.md",
        ),
        (
            0 < least <= most < math.inf,
            f"--scale takes two finite numbers, 0 < LEAST <= MOST, not {least} {most}",
        ),
        (
            options.output_stride in (8, 16),
            f"--output-stride must be 8 or 16, not {options.output_stride}",
        ),
        (
            0 < options.window_stride <= 1,
            f"--window-stride must be in (0, 1], not {options.window_stride}",
        ),
        (
            options.sbd is None or options.data is not None,
            f"--sbd {options.sbd} adds to VOC 2012, whose folder --data must name",
        ),
        (
            options.weights is None or options.network != "small",
            f"--weights {options.weights} is not for --network small. Choose another network",
        ),
    ):
        settings.require(is_met, message)


if __name__ == "__main__":
    sys.exit(comparison.main(Options, Segmentation, "segmentation"))
