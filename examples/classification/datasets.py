"""Image classification data sets by name."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from examples.classification import image_files
from examples.classification.image_files import Images, Split, Splits
from examples.common import image_sets
from examples.common.errors import DataError
from examples.common.reading import reading

_VALIDATION_SHARE = 0.2
_STATISTICS_IMAGES = 2000
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


class Dataset(NamedTuple):
    """A training set and the images to evaluate on.

    Images are arrays (n, height, width, channels) in uint8, or ``Images``. Labels are (n,) in
    int32.

    Attributes:
      mean: (channels,) float32, over training images.
      std: the standard deviation, likewise.
    """

    train_images: Any
    train_labels: np.ndarray
    held_out_images: Any
    held_out_labels: np.ndarray
    num_classes: int
    mean: np.ndarray
    std: np.ndarray


def load(options: Any) -> Dataset:
    """Loads the data set of ``classification.options.Options``, or generates it for ``--smoke``.

    Held-out training images and parts of the training set are the same for every seed and have the
    classes in equal shares. Images are read now, or with ``--input-threads`` when they are needed.

    Raises:
      DataError: for an unknown name, for data that cannot be read or downloaded, and for sizes
        that the data set cannot have.
    """
    if options.smoke:
        return generated(options.dataset, 2 * options.batch_size, options.image_size)
    train, held_out, num_classes = _splits(options)
    labels = train.labels
    if options.noisy_labels is not None:
        if options.dataset not in _SHAPES or _is_prepared_cifar(options):
            raise DataError(
                f"The labels of {options.noisy_labels} cannot be matched with {options.dataset},"
                " since its prepared form has another order. Use the original archive with"
                " --data-files."
            )
        labels = _read_labels(options.noisy_labels, len(labels), num_classes)
    rows = np.arange(len(labels))
    if options.validation:
        rows, other = _stratified("--validation", train.labels, test_size=_VALIDATION_SHARE)
        held_out = Split(train.images.select(other), train.labels[other])
    if options.train_examples:
        size = options.train_examples
        rows = rows[_stratified("--train-examples", train.labels[rows], train_size=size)[0]]
    train_images, held_out_images = train.images.select(rows), held_out.images
    if not options.input_threads:
        train_images, held_out_images = train_images[:], held_out_images[:]
    return Dataset(
        train_images,
        labels[rows],
        held_out_images,
        held_out.labels,
        num_classes,
        *mean_and_std(train_images),
    )


def generated(name: str, num_examples: int, image_size: int = 0) -> Dataset:
    """Random images and labels with the shape and number of classes of the named data set.

    They are for trying a program and need neither the data nor a network.

    Args:
      num_examples: the number of training examples, and of held-out examples.

    Raises:
      DataError: if there is no such data set.
    """
    if name in _SHAPES:
        shape, num_classes = _SHAPES[name]
    else:
        from examples.classification import prepared  # TensorFlow Datasets is slow to import

        _, shape, num_classes = prepared.find(name, None, image_size)
    if image_size:
        shape = (image_size, image_size, shape[-1])
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, num_examples, *shape), dtype=np.uint8)
    labels = rng.integers(0, num_classes, (2, num_examples), dtype=np.int32)
    return Dataset(
        images[0], labels[0], images[1], labels[1], num_classes, *mean_and_std(images[0])
    )


def mean_and_std(images: Any) -> tuple[np.ndarray, np.ndarray]:
    """Of each channel, (channels,) in float32, over at most 2,000 images that are always the same.

    The standard deviation is at least 1e-3.
    """
    rows = np.random.default_rng(0).permutation(len(images))[:_STATISTICS_IMAGES]
    channels = np.moveaxis(images[np.sort(rows)], -1, 0)
    mean = np.array([channel.mean() for channel in channels], np.float32)
    std = np.array([channel.std() for channel in channels], np.float32)
    return mean, np.maximum(std, np.float32(1e-3))


def _splits(options: Any) -> Splits:
    name, files, size = options.dataset, options.data_files, options.image_size
    if name == "image_folder":
        return image_files.read_folder(files, size)
    if name == "tiny_imagenet":
        return image_files.read_tiny_imagenet(files, size)
    if name not in _SHAPES or _is_prepared_cifar(options):
        from examples.classification import prepared  # TensorFlow Datasets is slow to import

        return prepared.load(*prepared.find(name, options.data_dir, size))
    if name == "digits":
        arrays = [image_sets.digits(split) for split in ("train", "test")]
    elif name == "fashion_mnist":
        folder = files or image_sets.FASHION_MNIST_FOLDER
        arrays = [image_sets.fashion_mnist(split, folder) for split in ("train", "test")]
    else:
        arrays = [image_sets.cifar(name, split, files) for split in ("train", "test")]
    splits = [_from_arrays(images, labels, size) for images, labels in arrays]
    return splits[0], splits[1], _SHAPES[name][1]


def _is_prepared_cifar(options: Any) -> bool:
    return options.dataset in image_sets.CIFAR_FILES and options.data_files is None


def _from_arrays(pixels: np.ndarray, labels: np.ndarray, image_size: int) -> Split:
    shape = (image_size, image_size, pixels.shape[-1]) if image_size else pixels.shape[1:]
    rows = np.arange(len(labels))
    images = Images(lambda row: (pixels[row], f"image {row}"), rows, shape, is_resized=True)
    return Split(images, labels.astype(np.int32))


def _stratified(option: str, labels: np.ndarray, **sizes: Any) -> Any:
    """The positions of two parts that have the classes in equal shares."""
    from sklearn.model_selection import train_test_split

    try:
        return train_test_split(np.arange(len(labels)), stratify=labels, random_state=0, **sizes)
    except ValueError as error:  # too few images for every class to be in both parts
        raise DataError(f"{option} is impossible with this data set: {error}") from error


def _read_labels(path: Path, size: int, num_classes: int) -> np.ndarray:
    with reading(path, "labels", "It must be a .npy file of one array of integers."):
        labels = np.load(path, allow_pickle=False)
        if labels.shape != (size,) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{labels.dtype} of the shape {labels.shape}, not {size} integers")
        if labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(
                f"labels up to {labels.max()}, but the last class is {num_classes - 1}"
            )
    return labels.astype(np.int32)
