"""Images for classification with label noise: digits, Fashion-MNIST and CIFAR."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from examples.common import image_sets
from examples.common.errors import DataError
from examples.common.pipeline import augmentation_rng

DATASETS = ("digits", "fashion_mnist", *image_sets.CIFAR_FILES)
_VALIDATION_SHARE = 0.2


class Batch(NamedTuple):
    """Images (n, height, width, channels) in uint8, labels (n,) and indices (n,) in int32."""

    images: Any
    labels: Any
    index: Any


class Images(NamedTuple):
    """A data set: images (n, height, width, channels) in uint8, labels (n,) in int32.

    ``mean`` and ``deviation`` are over all pixels of the training images.
    """

    train: np.ndarray
    train_labels: np.ndarray
    held_out: np.ndarray
    held_out_labels: np.ndarray
    num_classes: int
    mean: float
    deviation: float

    def normalized(self, images: jax.Array) -> jax.Array:
        """Return the float32 input of the networks."""
        return (images.astype(jnp.float32) - self.mean) / self.deviation


def load(
    name: str, files: Path | None, *, train_examples: int, noise: float, validation: bool
) -> Images:
    """Read a data set.

    Args:
      name: One of ``DATASETS``.
      files: The folder of Fashion-MNIST's files, by default that of Debian's package, or the
        archive of CIFAR.
      train_examples: The number of training examples, a fixed random subset; 0 for all.
      noise: The share of training labels that are replaced by another class.
      validation: Hold out a fifth of the training set in place of the test set. Labels that are
        held out have no noise.

    Raises:
      DataError: If the data set cannot be read or has fewer examples.
    """
    (images, labels), test = (_read(name, files, split) for split in ("train", "test"))
    order = np.random.default_rng(0).permutation(len(images))
    if validation:
        order, last = np.split(order, [round((1 - _VALIDATION_SHARE) * len(order))])
        test = images[last], labels[last]
    if train_examples > len(order):
        raise DataError(
            f"--train-examples {train_examples} is more than the {len(order)} of {name}. Use fewer,"
            " or 0 for all."
        )
    chosen = order[: train_examples or len(order)]
    num_classes = 100 if name == "cifar100" else 10
    train_labels = image_sets.add_symmetric_noise(
        labels[chosen].astype(np.int32), noise, num_classes, image_sets.noise_rng(0)
    )
    images = images[chosen]
    return Images(
        train=images,
        train_labels=train_labels,
        held_out=test[0],
        held_out_labels=test[1].astype(np.int32),
        num_classes=num_classes,
        mean=float(images.mean()),
        deviation=float(images.std()),
    )


def _read(name: str, files: Path | None, split: str) -> tuple[np.ndarray, np.ndarray]:
    match name:
        case "digits":
            return image_sets.digits(split)
        case "fashion_mnist":
            return image_sets.fashion_mnist(split, files or image_sets.FASHION_MNIST_FOLDER)
    return image_sets.cifar(name, split, image_sets.cifar_archive(name, files or Path()))


def crop_and_mirror(images: np.ndarray, seed: int, step: int) -> np.ndarray:
    """Shift each image by up to an eighth of its width, padded with 0, and mirror half of them."""
    rng = augmentation_rng(seed, step)
    _, height, width, _ = images.shape
    margin = width // 8
    padded = np.pad(images, [(0, 0), (margin, margin), (margin, margin), (0, 0)])
    rows, columns = rng.integers(0, 2 * margin + 1, (2, len(images)))
    cropped = [
        image[row : row + height, column : column + width]
        for image, row, column in zip(padded, rows, columns, strict=True)
    ]
    mirrored = rng.random(len(images)) < 0.5
    return np.stack([i[:, ::-1] if m else i for i, m in zip(cropped, mirrored, strict=True)])
