"""Digits and Fashion-MNIST as NumPy arrays, and symmetric label noise: data without a network."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from examples.common.errors import DataError

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts its files."""

_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_NOISE_STREAM = 1  # keeps the random streams of one seed apart; the order of a run has another


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits: images (n, 8, 8, 1) in uint8 of 0 to 16; labels (n,).

    They come without a split. Ours is fixed: 1,000 for training and 797 for testing, drawn once
    with the classes in equal shares (``train_test_split(..., stratify=labels, random_state=0)``).

    Args:
      split: train or test.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.astype(np.uint8).reshape(-1, 8, 8, 1)
    parts: Any = train_test_split(images, labels, train_size=1000, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = parts
    return {"train": (train_images, train_labels), "test": (test_images, test_labels)}[split]


def fashion_mnist(split: str, folder: Path = FASHION_MNIST_FOLDER) -> tuple[np.ndarray, np.ndarray]:
    """Fashion-MNIST from its idx.gz files: images (n, 28, 28, 1) and labels (n,), both in uint8.

    Args:
      split: train, 60,000, or test, 10,000.

    Raises:
      DataError: where a file is missing, is damaged, or does not belong to the other.
    """
    fashion_mnist_files(folder)
    images_path, labels_path = (folder / file for file in _FILES[split])
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.shape[1:] != (28, 28):
        raise DataError(f"{images_path} has the shape {images.shape}, not (n, 28, 28).")
    if labels.shape != images.shape[:1]:
        raise DataError(
            f"{images_path} has {len(images)} images, but {labels_path} has labels of the"
            f" shape {labels.shape}. They do not belong together."
        )
    if labels.max(initial=0) > 9:
        raise DataError(f"{labels_path} has the label {labels.max()}; the classes are 0 to 9.")
    return images[..., None], labels


def fashion_mnist_files(folder: Path) -> list[Path]:
    """The four files.

    Raises:
      DataError: where one is missing.
    """
    paths = [folder / file for files in _FILES.values() for file in files]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise DataError(
            f"{folder} lacks {', '.join(missing)}. Debian and Ubuntu have them in the package"
            " dataset-fashion-mnist (apt install dataset-fashion-mnist); elsewhere, download the"
            " four files named in github.com/zalandoresearch/fashion-mnist and pass their folder"
            " as --data-files."
        )
    return paths


def read_idx(path: Path) -> np.ndarray:
    """Reads a gzipped idx file of unsigned bytes: 0, 0, 8, rank, big-endian sizes, data.

    Raises:
      DataError: if it is truncated, or something else.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be decompressed: {error}. Download it again.") from error
    if content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
        raise DataError(f"{path} is not an idx file of unsigned bytes.")
    rank = content[3]
    shape = tuple(np.frombuffer(content, ">u4", count=rank, offset=4).tolist())
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if math.prod(shape) != len(values):
        raise DataError(
            f"{path} should hold {shape} values, but has {len(values)}. Download it again."
        )
    return values.reshape(shape)


def add_symmetric_noise(
    labels: np.ndarray, rate: float, num_classes: int, rng: np.random.Generator
) -> np.ndarray:
    """Replaces each label, with probability ``rate``, by another class drawn uniformly.

    The true class is not drawn, so ``rate`` is the share of wrong labels: the "symmetry flipping"
    of Co-teaching (arXiv 1804.06872) and O2U-Net (ICCV 2019), which the ARSAM paper follows.
    """
    is_flipped = rng.random(len(labels)) < rate
    offsets = rng.integers(1, num_classes, len(labels))
    return np.where(is_flipped, (labels + offsets) % num_classes, labels).astype(labels.dtype)


def noise_rng(seed: int) -> np.random.Generator:
    """What is random in the label noise of a seed."""
    return np.random.default_rng((seed, _NOISE_STREAM))
