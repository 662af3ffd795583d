"""Digits, Fashion-MNIST and CIFAR as NumPy arrays, and symmetric label noise."""

import gzip
import math
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from examples.common.errors import DataError
from examples.common.reading import check_size, reading

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts its files."""

_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
CIFAR_FILES = {
    "cifar10": (
        "cifar-10-binary.tar.gz",
        10,
        tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
        ("cifar-10-batches-bin/test_batch.bin",),
    ),
    "cifar100": (
        "cifar-100-binary.tar.gz",
        100,
        ("cifar-100-binary/train.bin",),
        ("cifar-100-binary/test.bin",),
    ),
}
"""For each data set: the archive, the number of classes, its training and its test files."""

_NOISE_STREAM = 1  # The order of the examples uses another stream of the same seed.
_MOST_AT_ONCE = 2**24  # bytes that the reader of a tar file asks for, such as a long header


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Load scikit-learn's handwritten digits: images (n, 8, 8, 1) of 0 to 16 in uint8, labels (n,).

    The data set comes without a split. This one is fixed: 1,000 images for training and 797 for
    testing, stratified by class (``train_test_split(..., stratify=labels, random_state=0)``).

    Args:
      split: ``"train"`` or ``"test"``.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.astype(np.uint8).reshape(-1, 8, 8, 1)
    parts: Any = train_test_split(images, labels, train_size=1000, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = parts
    return {"train": (train_images, train_labels), "test": (test_images, test_labels)}[split]


def fashion_mnist(split: str, folder: Path = FASHION_MNIST_FOLDER) -> tuple[np.ndarray, np.ndarray]:
    """Read Fashion-MNIST from its idx.gz files: images (n, 28, 28, 1) and labels (n,) in uint8.

    Args:
      split: ``"train"`` (60,000 images) or ``"test"`` (10,000 images).
      folder: The folder that has the four files.

    Raises:
      DataError: If a file is missing or damaged, or if images and labels do not match.
    """
    fashion_mnist_files(folder)
    images_path, labels_path = (folder / file for file in _FILES[split])
    images, labels = read_idx(images_path), read_idx(labels_path)
    shape = images.shape
    if shape[1:] != (28, 28) or labels.shape != shape[:1] or labels.max(initial=0) > 9:
        raise DataError(
            f"{images_path} and {labels_path} do not belong together: images of the shape"
            f" {shape}, labels of {labels.shape} up to {labels.max(initial=0)}."
        )
    return images[..., None], labels


def fashion_mnist_files(folder: Path) -> list[Path]:
    """Return the paths of the four files.

    Raises:
      DataError: If one is missing.
    """
    paths = [folder / file for files in _FILES.values() for file in files]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise DataError(
            f"{folder} lacks {', '.join(missing)}. On Debian and Ubuntu, install the package with"
            " apt install dataset-fashion-mnist. Elsewhere, download the four files named in"
            " github.com/zalandoresearch/fashion-mnist and pass their folder as --data-files."
        )
    return paths


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped idx file of unsigned bytes: 0, 0, 8, rank, big-endian sizes, data.

    Raises:
      DataError: If the file is damaged, or is something else.
    """
    with reading(path, "a gzipped idx file"), gzip.open(path) as file:
        start = file.read(4)
        if len(start) < 4 or start[:3] != b"\x00\x00\x08":
            raise DataError(f"{path} is not an idx file of unsigned bytes.")
        shape = struct.unpack(f">{start[3]}I", file.read(4 * start[3]))
        check_size(path, math.prod(shape))
        values = np.frombuffer(file.read(math.prod(shape) + 1), np.uint8)
        if len(values) != math.prod(shape):
            raise DataError(
                f"{path} should hold {shape} values, but has {len(values)}. Download it again."
            )
        return values.reshape(shape)


def cifar_archive(name: str, path: Path) -> Path:
    """Return the path of a CIFAR archive, the tar.gz of its binary version.

    Args:
      name: ``"cifar10"`` or ``"cifar100"``.
      path: The archive, or the folder that has it.

    Raises:
      DataError: If it is missing.
    """
    archive = path / CIFAR_FILES[name][0] if path.is_dir() else path
    if not archive.exists():
        raise DataError(
            f"There is no {archive}. Download it from www.cs.toronto.edu/~kriz/cifar.html and pass"
            " it, or its folder, as --data-files."
        )
    return archive


def cifar(name: str, split: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read CIFAR-10 or CIFAR-100: images (n, 32, 32, 3) and labels (n,), both in uint8.

    A record of the binary version has one byte for the label and 3 × 32 × 32 bytes for the image.
    In CIFAR-100 the label of the superclass comes first.

    Args:
      name: ``"cifar10"`` or ``"cifar100"``.
      split: ``"train"`` (50,000 images) or ``"test"`` (10,000 images).
      path: The archive, or the folder that has it.

    Raises:
      DataError: If the archive is missing or damaged, or belongs to another data set.
    """
    archive = cifar_archive(name, path)
    _, num_classes, train, test = CIFAR_FILES[name]
    num_labels = 2 if name == "cifar100" else 1
    size = num_labels + 3072
    files = {"train": train, "test": test}[split]
    records = np.concatenate(list(_read_records(name, archive, files, size)))
    labels = records[:, num_labels - 1]
    if labels.max() >= num_classes:
        raise DataError(f"{archive} has the label {labels.max()}, but {num_classes} classes.")
    images = records[:, num_labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels


class _Gzip(gzip.GzipFile):
    """A file that is read in pieces of limited size, also by the parser of headers."""

    def read(self, size: int | None = -1) -> bytes:
        check_size(self.name, size or 0, _MOST_AT_ONCE)
        return super().read(size)


def _read_records(name: str, path: Path, files: tuple[str, ...], size: int) -> Iterator[np.ndarray]:
    """Read each of the files of a CIFAR archive as records of ``size`` bytes, (n, size)."""
    with (
        reading(path, f"the archive of {name}"),
        _Gzip(path) as stream,
        tarfile.open(fileobj=stream) as archive,
    ):
        members = {member.name: member for member in archive.getmembers()}
        while stream.read(2**20):  # At its end the checksum is compared.
            pass
        for file in files:
            place, member = f"{file} in {path}", members.get(file)
            if member is None:
                raise DataError(f"{path} lacks {file}. Is it of {name}?")
            if not member.isreg():
                raise DataError(f"{place} is not a regular file. Download the archive again.")
            check_size(place, member.size)
            content: Any = archive.extractfile(member)
            values = np.frombuffer(content.read(), np.uint8)
            if not values.size or values.size % size:
                raise DataError(f"{place} is no whole number of images. Download it again.")
            yield values.reshape(-1, size)


def add_symmetric_noise(
    labels: np.ndarray, rate: float, num_classes: int, rng: np.random.Generator
) -> np.ndarray:
    """Replace each label, with probability ``rate``, by another class drawn uniformly.

    The true class is never drawn, so ``rate`` is the expected share of noisy labels. This is the
    "symmetry flipping" of Co-teaching (arXiv 1804.06872) and O2U-Net (ICCV 2019), which the ARSAM
    paper follows.
    """
    is_flipped = rng.random(len(labels)) < rate
    offsets = rng.integers(1, num_classes, len(labels))
    return np.where(is_flipped, (labels + offsets) % num_classes, labels).astype(labels.dtype)


def noise_rng(seed: int) -> np.random.Generator:
    """Return the random number generator of the label noise of a seed."""
    return np.random.default_rng((seed, _NOISE_STREAM))
