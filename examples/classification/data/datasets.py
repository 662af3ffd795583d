"""Image-classification data sets by name, in memory or read as they are needed."""

import contextlib
import difflib
import logging
import re
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from examples.classification.data import builders
from examples.classification.data.images import (
    Dataset,
    Files,
    Images,
    Records,
    decode,
    mean_and_std,
)
from examples.common import image_sets
from examples.common.errors import DataError

_OWN = {  # shape of the images and number of classes of what tensorflow-datasets lacks
    "digits": ((8, 8, 1), 10),
    "fashion_mnist": ((28, 28, 1), 10),
    "tiny_imagenet": ((64, 64, 3), 200),
    "image_folder": ((64, 64, 3), 10),  # of generated ones
}
_CHUNK = 1000  # examples that are read at a time: a third of the time of one by one
_STATISTICS_EXAMPLES = 2000
_TIMEOUT = 5  # seconds; offline, tensorflow-datasets itself gives up after minutes


FROM_FILES = ("fashion_mnist", "tiny_imagenet", "image_folder", *image_sets.CIFAR_FILES)
"""The data sets that may be, or are, read from files of the user's."""


class _Split(NamedTuple):
    """Where a split's images are read from, its labels (n,) and original positions (n,)."""

    images: Records
    labels: np.ndarray
    positions: np.ndarray | None


def load(
    name: str,
    *,
    data_dir: Path | None = None,
    data_files: Path | None = None,
    validation: float = 0,
    image_size: int = 0,
    train_examples: int = 0,
    in_memory: bool = True,
) -> Dataset:
    """Loads a data set, preparing it on its first use.

    Args:
      name: ``digits`` (scikit-learn's), ``fashion_mnist`` (from idx.gz files), ``tiny_imagenet``
        (from its zip file), ``image_folder`` (images of one's own), or the name of any
        image-classification data set of tensorflow-datasets.
      data_dir: where prepared data is kept; None for tensorflow-datasets' own default.
      data_files: the folder of Fashion-MNIST's idx.gz files (None: where Debian installs them),
        Tiny ImageNet's zip file or its folder, the tar.gz of CIFAR's binary version or its folder
        (None: as tensorflow-datasets prepares it, which takes TensorFlow), or the folder of
        ``image_folder``: see ``builders.read_image_folder``.
      validation: this share of the training set, the same for every seed and with the classes in
        equal shares, is held out of it.
      image_size: images are resized to a square of so many pixels a side; 0 to keep their size.
      train_examples: keep only so many training images of those not held out, the same for every
        seed, with the classes in equal shares, and among those of any larger number; 0 for all.
      in_memory: whether all images are held in memory, as arrays. If not they are ``Records``,
        their labels are read once now, and ``mean`` and ``std`` are those of at most 2,000
        training images, the same for every seed.

    Raises:
      DataError: for an unknown name, a data set that is no image classification, or one that is
        neither prepared nor can be downloaded; for unreadable, truncated or mislabelled data; and
        for shares and sizes that the data set cannot have.
    """
    if name == "image_folder":
        train, test, num_classes = _from_folder(data_files, image_size)
    else:
        train, test, num_classes = _from_builder(name, data_dir, data_files, image_size)
    rows, held_out = np.arange(len(train.labels)), None
    if validation:
        rows, held_out = _hold_out(train.labels, validation)
    if train_examples:
        rows = rows[_subset(train.labels[rows], train_examples, num_classes)]

    def images_of(records: Records) -> Images:
        return records[:] if in_memory else records

    train_images = images_of(train.images.of(rows))
    sample = train_images
    if not in_memory and len(rows) > _STATISTICS_EXAMPLES:
        drawn = np.random.default_rng(0).permutation(len(rows))[:_STATISTICS_EXAMPLES]
        sample = train.images.of(rows[np.sort(drawn)])
    mean, std = mean_and_std(sample)
    return Dataset(
        name,
        train_images,
        train.labels[rows],
        None if held_out is None else images_of(train.images.of(held_out)),
        None if held_out is None else train.labels[held_out],
        images_of(test.images),
        test.labels,
        num_classes,
        mean,
        std,
        None if train.positions is None else train.positions[rows],
        len(train.labels),
    )


def generated(
    name: str,
    *,
    num_examples: int = 512,
    validation: bool = False,
    image_size: int = 0,
    data_files: Path | None = None,
) -> Dataset:
    """Random images and labels, of the named data set's shape and number of classes.

    For trying a program out: needs neither the data nor a network. ``image_folder`` has ten
    classes and, without ``image_size``, 64 pixels a side; with ``data_files`` the folder's classes.

    Args:
      num_examples: of the training set, and of the test set too.
      validation: whether there are as many for validation.

    Raises:
      DataError: for what is an error of ``load`` without looking at the data.
    """
    if name in _OWN:
        shape, num_classes = _OWN[name]
        if name == "image_folder" and data_files is not None:
            num_classes = len(builders.read_image_folder(data_files)[0])
    else:
        builder: Any = _make_builder(name, None, None)
        image_key, label_key = _image_and_label_keys(builder, image_size)
        shape = builder.info.features[image_key].shape
        num_classes = builder.info.features[label_key].num_classes
    if image_size:
        shape = (image_size, image_size, shape[-1])
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, num_examples, *shape), dtype=np.uint8)
    labels = rng.integers(0, num_classes, (3, num_examples), dtype=np.int32)
    return Dataset(
        name,
        *(images[0], labels[0]),
        *((images[1], labels[1]) if validation else (None, None)),
        *(images[2], labels[2]),
        num_classes,
        *mean_and_std(images[0]),
        np.arange(num_examples),
        num_examples,
    )


def _from_folder(folder: Path | None, image_size: int) -> tuple[_Split, _Split, int]:
    classes, train, test = builders.read_image_folder(folder)
    if image_size:
        shape = (image_size, image_size, 3)
    else:
        ((name, content),) = train.files(np.array([0]))
        shape = decode(name, content, channels=3).shape

    def split(files: Files, labels: np.ndarray) -> _Split:
        rows = np.arange(len(labels))
        return _Split(Records(files, rows, shape, is_resized=bool(image_size)), labels, rows)

    return split(*train), split(*test), len(classes)


def _from_builder(
    name: str, data_dir: Path | None, data_files: Path | None, image_size: int
) -> tuple[_Split, _Split, int]:
    tfds.disable_progress_bar()
    logging.getLogger("absl").setLevel(logging.ERROR)  # "has no dataset_info.json", at first use
    try:
        builder: Any = _make_builder(name, data_dir, data_files)
        image_key, label_key = _image_and_label_keys(builder, image_size)
        try:
            _prepare(builder)
        except FileExistsError:  # another process was first, with the same data
            builder = _make_builder(name, data_dir, data_files)
    except ImportError as error:
        raise DataError(
            f"Preparing {name} for the first time needs a package that is not installed (reading"
            f" it afterwards does not): {error}"
        ) from error
    shape = builder.info.features[image_key].shape
    if image_size:
        shape = (image_size, image_size, shape[-1])
    num_classes = builder.info.features[label_key].num_classes

    def split(split_name: str) -> _Split:
        read = _Prepared(builder, split_name, image_key)
        labels, positions = read.labels(label_key)
        images = Records(read, np.arange(len(labels)), shape, is_resized=bool(image_size))
        return _Split(images, labels, positions)

    train = split("train")
    for split_name in ("test", "validation"):
        if split_name in builder.info.splits:
            test = split(split_name)
            if test.labels.min(initial=0) >= 0:  # where they are secret they are -1
                return train, test, num_classes
    raise DataError(f"{name} has neither a test nor a validation split with labels.")


class _Prepared:
    """A prepared split, as ``Records`` reads it."""

    def __init__(self, builder: Any, split: str, image_key: str):
        self._folder, self._split, self._image_key = builder.data_path, split, image_key
        self._source = builder.as_data_source(
            split, decoders={image_key: tfds.decode.SkipDecoding()}
        )

    def __reduce__(self):  # not with the builder, which may need the files it was prepared from
        return _prepared_in, (self._folder, self._split, self._image_key)

    def __call__(self, rows: np.ndarray) -> Iterator[tuple[str, bytes | np.ndarray]]:
        for row, example in zip(rows, self._examples(rows), strict=True):
            yield f"Example {row} of {self._folder}, {self._split}", example[self._image_key]

    def labels(self, label_key: str) -> tuple[np.ndarray, np.ndarray | None]:
        """The labels (n,) in int32, and the original positions (n,) if their ids tell them."""
        labels, ids = [], []
        for example in self._examples(np.arange(len(self._source))):
            labels.append(example[label_key])
            ids.append(example.get("id", ""))
        return np.array(labels, np.int32), _positions(ids)

    def _examples(self, rows: np.ndarray) -> Iterator[dict[str, Any]]:
        for start in range(0, len(rows), _CHUNK):
            try:
                yield from self._source.__getitems__(rows[start : start + _CHUNK].tolist())
            except Exception as error:  # of the reader's C++, in many kinds
                raise DataError(
                    f"{self._folder}, where the {self._split} split is prepared, cannot be read:"
                    f" {error}. Delete that folder to have it prepared again."
                ) from error


def _prepared_in(folder: Path, split: str, image_key: str) -> _Prepared:
    return _Prepared(tfds.builder_from_directory(folder), split, image_key)


def _positions(ids: Iterable[Any]) -> np.ndarray | None:
    """The numbers at the end of such ids as ``train_16399``; None unless they are 0 to n - 1."""
    matches = [
        re.search(r"\d+$", value.decode() if isinstance(value, bytes) else str(value))
        for value in ids
    ]
    positions = np.array([int(match[0]) if match else -1 for match in matches])
    is_order = np.array_equal(np.sort(positions), np.arange(len(positions)))
    return positions if is_order else None


def _hold_out(labels: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(labels))
    try:
        parts: Any = train_test_split(rows, test_size=share, stratify=labels, random_state=0)
    except ValueError as error:  # too few images for every class to be in both parts
        raise DataError(f"A validation share of {share} is impossible: {error}") from error
    return tuple(parts)


def _subset(labels: np.ndarray, size: int, num_classes: int) -> np.ndarray:
    """So many positions, sorted, with the classes in equal shares; a part of any larger subset."""
    if not num_classes <= size <= len(labels):
        raise DataError(
            f"{size} training examples are impossible: there are {len(labels)}, and each of the"
            f" {num_classes} classes needs one."
        )
    order = np.random.default_rng(0).permutation(len(labels))
    rank, share = np.zeros(len(labels), int), np.zeros(len(labels))
    for label in range(num_classes):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
        share[members] = (rank[members] + 0.5) / max(1, len(members))
    return np.sort(np.lexsort((share, rank > 0))[:size])  # one of each class, then the rest


def _make_builder(
    name: str, data_dir: Path | None, data_files: Path | None
) -> tfds.core.DatasetBuilder:
    kwargs = {"data_dir": data_dir, "file_format": "array_record"}
    if name == "digits":
        return builders.Digits(**kwargs)
    if name == "fashion_mnist":
        folder = data_files or image_sets.FASHION_MNIST_FOLDER
        return builders.FashionMnistFiles(folder=Path(folder), **kwargs)
    if name == "tiny_imagenet":
        return builders.TinyImagenet(file=data_files, **kwargs)
    if name in image_sets.CIFAR_FILES and data_files is not None:
        return builders.CifarFiles(name=name, file=data_files, **kwargs)
    try:
        return tfds.builder(name, try_gcs=False, **kwargs)
    except tfds.core.DatasetNotFoundError:
        known = sorted({*_OWN, *tfds.list_builders(with_community_datasets=False)})
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


def _image_and_label_keys(builder: tfds.core.DatasetBuilder, image_size: int) -> tuple[str, str]:
    features: Any = builder.info.features
    match builder.info.supervised_keys:
        case (str() as image, str() as label) if (
            len(features[image].shape or ()) == 3
            and features[image].np_dtype == np.uint8
            and isinstance(features[label], tfds.features.ClassLabel)
        ):
            pass
        case _:
            raise DataError(f"{builder.name} is not an image-classification data set.")
    if None in features[image].shape and not image_size:
        raise DataError(
            f"The images of {builder.name} differ in size. Pass --image-size to resize all to one."
        )
    return image, label
