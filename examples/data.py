"""Image-classification data: prepared by tensorflow-datasets, then held in memory as NumPy arrays.

Everything random here (order, label noise) is a function of a seed and an epoch, so the number of
steps taken is all the state a resumed run needs.
"""

import contextlib
import difflib
import logging
import socket
import threading
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from examples import builders

_NOISE_STREAM, _ORDER_STREAM = 1, 2  # keep the random streams of one seed apart

_TIMEOUT = 5  # seconds; offline, tensorflow-datasets itself gives up after minutes


class DataError(Exception):
    """The data cannot be had; the message says what to do."""


class Dataset(NamedTuple):
    """Images (n, height, width, channels) in uint8, labels (n,) in int32.

    ``mean`` and ``std``, (channels,) float32, are those of the training images.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    mean: np.ndarray
    std: np.ndarray


def load(
    name: str,
    *,
    data_dir: Path | None = None,
    data_files: Path | None = None,
    validation: float = 0,
) -> Dataset:
    """Loads a data set, preparing it on its first use.

    Args:
      name: ``digits`` (scikit-learn's), ``fashion_mnist`` (from idx.gz files), or the name of any
        image-classification data set of tensorflow-datasets.
      data_dir: where prepared data is kept; None for tensorflow-datasets' own default.
      data_files: folder of Fashion-MNIST's idx.gz files; None for where Debian installs them.
      validation: this share of the training set, the same for every seed and with the classes in
        equal shares, takes the place of the test set, which then stays untouched.

    Raises:
      DataError: for an unknown name, a data set that is no image classification, or one that is
        neither prepared nor can be downloaded.
    """
    tfds.disable_progress_bar()
    logging.getLogger("absl").setLevel(logging.ERROR)  # "has no dataset_info.json", at first use
    try:
        builder: Any = _make_builder(name, data_dir, data_files)
        try:
            _prepare(builder)
        except FileExistsError:  # another process was first, with the same data
            builder = _make_builder(name, data_dir, data_files)
    except ImportError as error:
        raise DataError(
            f"Preparing {name} for the first time needs a package that is not installed (reading"
            f" it afterwards does not): {error}"
        ) from error
    image_key, label_key = _image_and_label_keys(builder)
    features: Any = builder.info.features
    test_split = "validation" if "validation" in builder.info.splits else "test"
    if "test" in builder.info.splits:
        test_split = "test"

    def read(split: str) -> tuple[np.ndarray, np.ndarray]:
        source = builder.as_data_source(split)
        examples = source.__getitems__(range(len(source)))  # a third of a loop's time
        images = np.stack([example[image_key] for example in examples])
        return images, np.array([example[label_key] for example in examples], np.int32)

    train_images, train_labels = read("train")
    if validation:
        from sklearn.model_selection import train_test_split

        try:
            parts: Any = train_test_split(
                train_images,
                train_labels,
                test_size=validation,
                stratify=train_labels,
                random_state=0,
            )
        except ValueError as error:  # too few images for every class to be in both parts
            raise DataError(f"A validation share of {validation} is impossible: {error}") from error
        train_images, test_images, train_labels, test_labels = parts
    else:
        test_images, test_labels = read(test_split)
    return Dataset(
        train_images,
        train_labels,
        test_images,
        test_labels,
        num_classes=features[label_key].num_classes,
        mean=train_images.mean((0, 1, 2), dtype=np.float64).astype(np.float32),
        std=np.maximum(train_images.std((0, 1, 2), dtype=np.float64), 1e-3).astype(np.float32),
    )


def add_symmetric_noise(labels: np.ndarray, rate: float, num_classes: int, seed: int) -> np.ndarray:
    """Replaces each label, with probability ``rate``, by another class drawn uniformly.

    The true class is not drawn, so ``rate`` is the share of wrong labels: the "symmetry flipping"
    of Co-teaching (arXiv 1804.06872) and O2U-Net (ICCV 2019), which the ARSAM paper follows.
    """
    rng = np.random.default_rng((seed, _NOISE_STREAM))
    is_flipped = rng.random(len(labels)) < rate
    offsets = rng.integers(1, num_classes, len(labels))
    return np.where(is_flipped, (labels + offsets) % num_classes, labels).astype(labels.dtype)


def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the examples in an epoch."""
    return np.random.default_rng((seed, _ORDER_STREAM, epoch)).permutation(num_examples)


def _make_builder(
    name: str, data_dir: Path | None, data_files: Path | None
) -> tfds.core.DatasetBuilder:
    kwargs = {"data_dir": data_dir, "file_format": "array_record"}
    if name == "digits":
        return builders.Digits(**kwargs)
    if name == "fashion_mnist":
        try:
            return builders.FashionMnistFiles(
                folder=data_files or builders.FASHION_MNIST_FOLDER, **kwargs
            )
        except FileNotFoundError as error:
            raise DataError(str(error)) from error
    try:
        return tfds.builder(name, try_gcs=False, **kwargs)
    except tfds.core.DatasetNotFoundError:
        known = sorted({"digits", *tfds.list_builders(with_community_datasets=False)})
        near = difflib.get_close_matches(name, known, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise DataError(f"There is no data set named {name!r}.{hint}") from None


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Downloads and prepares what is not on disk yet, or says at once why it cannot."""
    if builder.is_prepared():
        return
    urls = list(builder.url_infos or ())
    if urls and not is_reachable(urls[0]):
        raise DataError(
            f"{builder.name} is not prepared in {builder.data_path.parent.parent} and"
            f" {urllib.parse.urlsplit(urls[0]).hostname} cannot be reached to download it. Prepare"
            " it once on a machine with a network (the same command does it), copy that folder,"
            " and pass it as --data-dir; or use --dataset digits, which needs no download."
        )
    builder.download_and_prepare()


def is_reachable(url: str) -> bool:
    """Whether a server answers within seconds, the resolution of its name included."""
    if urllib.request.getproxies():
        return True  # only the proxy can tell
    parts = urllib.parse.urlsplit(url)
    port = parts.port or {"http": 80, "ftp": 21}.get(parts.scheme, 443)
    connected = threading.Event()

    def connect():
        with (
            contextlib.suppress(OSError),
            socket.create_connection((parts.hostname, port), timeout=_TIMEOUT),
        ):
            connected.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_TIMEOUT)
    return connected.is_set()


def _image_and_label_keys(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
    features: Any = builder.info.features
    match builder.info.supervised_keys:
        case (str() as image, str() as label) if len(
            features[image].shape or ()
        ) == 3 and isinstance(features[label], tfds.features.ClassLabel):
            pass
        case _:
            raise DataError(f"{builder.name} is not an image-classification data set.")
    if None in features[image].shape:
        raise DataError(f"The images of {builder.name} differ in size; one size is needed here.")
    return image, label
