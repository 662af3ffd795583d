"""Image classification data sets by name."""

import difflib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from examples.classification import image_files, prepared
from examples.classification.images import Dataset, Images, Records, mean_and_std
from examples.common import image_sets
from examples.common.errors import DataError

_VALIDATION_SHARE = 0.2
_SHAPES = {  # of the images, and the number of classes
    "digits": ((8, 8, 1), 10),
    "fashion_mnist": ((28, 28, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "cifar100": ((32, 32, 3), 100),
    "tiny_imagenet": ((64, 64, 3), 200),
    "image_folder": ((64, 64, 3), 10),  # of generated images
}

FROM_FILES = ("fashion_mnist", "tiny_imagenet", "image_folder", *image_sets.CIFAR_FILES)
"""The data sets that can be, or are always, read from the user's files."""


class Split(NamedTuple):
    """The images of a split, their labels (n,), and their positions (n,) in the original order."""

    images: Images
    labels: np.ndarray
    positions: np.ndarray | None


def load(
    name: str,
    *,
    data_dir: Path | None = None,
    data_files: Path | None = None,
    validation: bool = False,
    image_size: int = 0,
    train_examples: int = 0,
    in_memory: bool = True,
) -> Dataset:
    """Loads a data set.

    Args:
      name: ``digits``, ``fashion_mnist``, ``tiny_imagenet``, ``image_folder``, or the name of an
        image classification data set of tensorflow-datasets, which is prepared on its first use.
      data_dir: where tensorflow-datasets keeps prepared data; None for its own default.
      data_files: the file or folder with the data, see ``--data-files``.
      validation: evaluate on a fifth of the training set, which is then not trained on. It is the
        same for every seed and has the classes in equal shares.
      image_size: resize the images to this many pixels per side; 0 keeps their size.
      train_examples: keep only this many training images. They are the same for every seed, have
        the classes in equal shares and are a part of any larger number. 0 keeps all.
      in_memory: read all images now. Otherwise images in files are read when they are needed.

    Raises:
      DataError: for an unknown name, for data that cannot be read or downloaded, and for sizes
        that the data set cannot have.
    """
    train, test, num_classes = _splits(name, data_dir, data_files, image_size)
    rows = np.arange(len(train.labels))
    held_out = test
    if validation:
        rows, held_out_rows = _hold_out(train.labels)
        held_out = Split(_select(train.images, held_out_rows), train.labels[held_out_rows], None)
    if train_examples:
        rows = rows[_subset(train.labels[rows], train_examples, num_classes)]
    train_images, held_out_images = _select(train.images, rows), held_out.images
    if in_memory:
        train_images, held_out_images = train_images[:], held_out_images[:]
    mean, std = mean_and_std(train_images)
    return Dataset(
        name=name,
        train_images=train_images,
        train_labels=train.labels[rows],
        held_out_images=held_out_images,
        held_out_labels=held_out.labels,
        num_classes=num_classes,
        mean=mean,
        std=std,
        train_index=None if train.positions is None else train.positions[rows],
        num_original=len(train.labels),
    )


def generated(
    name: str, num_examples: int, *, image_size: int = 0, data_files: Path | None = None
) -> Dataset:
    """Random images and labels with the shape and number of classes of the named data set.

    They are for trying a program and need neither the data nor a network. ``image_folder`` has ten
    classes of 64 pixels, or with ``data_files`` the classes of the folder.

    Args:
      num_examples: the number of training examples, and of held-out examples.

    Raises:
      DataError: if there is no such data set.
    """
    if name in _SHAPES:
        shape, num_classes = _SHAPES[name]
        if name == "image_folder" and data_files is not None:
            num_classes = len(image_files.read_folder(data_files)[0])
    else:
        shape, num_classes = prepared.shape_and_classes(_builder(name, None), image_size)
    if image_size:
        shape = (image_size, image_size, shape[-1])
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, num_examples, *shape), dtype=np.uint8)
    labels = rng.integers(0, num_classes, (2, num_examples), dtype=np.int32)
    mean, std = mean_and_std(images[0])
    return Dataset(
        name=name,
        train_images=images[0],
        train_labels=labels[0],
        held_out_images=images[1],
        held_out_labels=labels[1],
        num_classes=num_classes,
        mean=mean,
        std=std,
        train_index=np.arange(num_examples),
        num_original=num_examples,
    )


def _splits(
    name: str, data_dir: Path | None, data_files: Path | None, image_size: int
) -> tuple[Split, Split, int]:
    """The training and the test set, and the number of classes."""
    if name == "image_folder":
        return _from_files(*image_files.read_folder(data_files), image_size)
    if name == "tiny_imagenet":
        return _from_files(*image_files.read_tiny_imagenet(data_files), image_size)
    if name == "digits":
        arrays = [image_sets.digits(split) for split in ("train", "test")]
    elif name == "fashion_mnist":
        folder = data_files or image_sets.FASHION_MNIST_FOLDER
        arrays = [image_sets.fashion_mnist(split, folder) for split in ("train", "test")]
    elif name in image_sets.CIFAR_FILES and data_files is not None:
        archive = image_sets.cifar_archive(name, data_files)
        arrays = [image_sets.cifar(name, split, archive) for split in ("train", "test")]
    else:
        train, test, num_classes = prepared.load(_builder(name, data_dir), image_size)
        return Split(*train), Split(*test), num_classes
    splits = [_from_arrays(images, labels, image_size) for images, labels in arrays]
    return splits[0], splits[1], _SHAPES[name][1]


def _from_arrays(images: np.ndarray, labels: np.ndarray, image_size: int) -> Split:
    rows = np.arange(len(labels))
    if not image_size:
        return Split(images, labels.astype(np.int32), rows)

    def read(rows):
        return ((f"image {row}", images[row]) for row in rows)

    shape = (image_size, image_size, images.shape[-1])
    return Split(Records(read, rows, shape, is_resized=True), labels.astype(np.int32), rows)


def _from_files(
    classes: list[str],
    train: image_files.LabelledFiles,
    test: image_files.LabelledFiles,
    image_size: int,
) -> tuple[Split, Split, int]:
    shape = (image_size, image_size, 3) if image_size else train.shape_of_first()

    def split(files: image_files.LabelledFiles) -> Split:
        rows = np.arange(len(files.labels))
        images = Records(files.read, rows, shape, is_resized=bool(image_size))
        return Split(images, files.labels, rows)

    return split(train), split(test), len(classes)


def _select(images: Images, rows: np.ndarray) -> Images:
    return images.select(rows) if isinstance(images, Records) else images[rows]


def _hold_out(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(labels))
    try:
        parts: Any = train_test_split(
            rows, test_size=_VALIDATION_SHARE, stratify=labels, random_state=0
        )
    except ValueError as error:  # too few images for every class to be in both parts
        raise DataError(f"--validation is impossible with this data set: {error}") from error
    return parts[0], parts[1]


def _subset(labels: np.ndarray, size: int, num_classes: int) -> np.ndarray:
    """Positions of a subset, sorted, with the classes in equal shares."""
    if not num_classes <= size <= len(labels):
        raise DataError(
            f"--train-examples {size} is impossible: there are {len(labels)} examples, and each of"
            f" the {num_classes} classes needs one."
        )
    order = np.random.default_rng(0).permutation(len(labels))
    rank, share = np.zeros(len(labels), int), np.zeros(len(labels))
    for label in range(num_classes):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
        share[members] = (rank[members] + 0.5) / max(1, len(members))
    return np.sort(np.lexsort((share, rank > 0))[:size])  # one of each class, then the rest


def _builder(name: str, data_dir: Path | None) -> Any:
    builder, known = prepared.builder(name, data_dir)
    if builder is None:
        near = difflib.get_close_matches(name, sorted({*_SHAPES, *known}), n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise DataError(f"There is no data set named {name!r}.{hint}")
    return builder
