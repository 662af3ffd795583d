"""Digits, Fashion-MNIST and CIFAR as NumPy arrays, and symmetric label noise."""

import gzip
import math
import tarfile
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
CIFAR_FILES = {
    "cifar10": (
        *("cifar-10-binary.tar.gz", 10),
        tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
        ("cifar-10-batches-bin/test_batch.bin",),
    ),
    "cifar100": (
        *("cifar-100-binary.tar.gz", 100),
        ("cifar-100-binary/train.bin",),
        ("cifar-100-binary/test.bin",),
    ),
}
"""The archive of each, its classes, and the files of the training and the test set in it."""

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


def cifar_archive(name: str, path: Path) -> Path:
    """The tar.gz of CIFAR's binary version, given as such or by its folder.

    Raises:
      DataError: where it is missing.
    """
    archive = path / CIFAR_FILES[name][0] if path.is_dir() else path
    if not archive.exists():
        raise DataError(
            f"There is no {archive}. Download it from www.cs.toronto.edu/~kriz/cifar.html and pass"
            " it, or its folder, as --data-files."
        )
    return archive


def cifar(name: str, split: str, archive: Path) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10 or CIFAR-100: images (n, 32, 32, 3) and labels (n,), both in uint8.

    A record of the binary version is the label, on CIFAR-100 after that of the superclass, and
    3 × 32 × 32 bytes.

    Args:
      name: cifar10 or cifar100.
      split: train, 50,000, or test, 10,000.
      archive: see ``cifar_archive``.

    Raises:
      DataError: where it is damaged, or is not of this data set.
    """
    _, num_classes, train, test = CIFAR_FILES[name]
    num_labels = 2 if name == "cifar100" else 1
    size = num_labels + 3072
    files = {"train": train, "test": test}[split]
    records = np.concatenate([_read_records(name, archive, file, size) for file in files])
    labels = records[:, num_labels - 1]
    if labels.max() >= num_classes:
        raise DataError(f"{archive} has label {labels.max()}, which is no class.")
    images = records[:, num_labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels


def _read_records(name: str, path: Path, file: str, size: int) -> np.ndarray:
    try:
        with tarfile.open(path) as archive:
            member: Any = archive.extractfile(file)
            content = member.read()
    except KeyError:
        raise DataError(f"{path} lacks {file}. Is it of {name}?") from None
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise DataError(
            f"{path} is damaged: {file} cannot be read ({error}). Download it again."
        ) from error
    if not content or len(content) % size:
        raise DataError(f"{file} in {path} is no whole number of images.")
    return np.frombuffer(content, np.uint8).reshape(-1, size)


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
