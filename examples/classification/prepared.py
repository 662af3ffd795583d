"""The data sets of tensorflow-datasets, which prepares them on their first use."""

import contextlib
import logging
import re
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from examples.classification.images import Records
from examples.common.errors import DataError

_CHUNK = 1000  # examples that are read at a time, which takes a third of the time of one by one
_TIMEOUT = 5  # seconds; without a network, tensorflow-datasets itself gives up after minutes


def builder(name: str, data_dir: Path | None) -> tuple[Any, list[str]]:
    """The builder of a data set; None and the names of all data sets if there is none."""
    import tensorflow_datasets as tfds  # slow to import

    try:
        return tfds.builder(name, try_gcs=False, data_dir=data_dir, file_format="array_record"), []
    except tfds.core.DatasetNotFoundError:
        return None, tfds.list_builders(with_community_datasets=False)


def shape_and_classes(builder: Any, image_size: int) -> tuple[tuple[int, ...], int]:
    """The shape of the images before they are resized, and the number of classes."""
    image_key, label_key = _keys(builder, image_size)
    features = builder.info.features
    return features[image_key].shape, features[label_key].num_classes


def load(builder: Any, image_size: int) -> tuple[tuple[Any, ...], tuple[Any, ...], int]:
    """The training and the test set, each as images, labels and positions; number of classes.

    Raises:
      DataError: if the data set is no image classification, has no labelled test set, or is
        neither prepared nor can be downloaded.
    """
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    logging.getLogger("absl").setLevel(logging.ERROR)  # "has no dataset_info.json", on first use
    image_key, label_key = _keys(builder, image_size)
    _prepare(builder)
    shape, num_classes = shape_and_classes(builder, image_size)
    if image_size:
        shape = (image_size, image_size, shape[-1])

    def split(name: str) -> tuple[Records, np.ndarray, np.ndarray | None]:
        source = builder.as_data_source(name, decoders={image_key: tfds.decode.SkipDecoding()})
        place = f"{builder.data_path}, split {name}"
        examples = list(_read(source, place, np.arange(len(source))))
        labels = np.array([example[label_key] for example in examples], np.int32)
        positions = _positions(example.get("id", "") for example in examples)

        def read(rows: np.ndarray) -> Iterator[tuple[str, Any]]:
            for row, example in zip(rows, _read(source, place, rows), strict=True):
                yield f"Example {row} of {place}", example[image_key]

        images = Records(read, np.arange(len(labels)), shape, is_resized=bool(image_size))
        return images, labels, positions

    train = split("train")
    for name in ("test", "validation"):
        if name in builder.info.splits:
            test = split(name)
            if test[1].min(initial=0) >= 0:  # secret labels are -1
                return train, test, num_classes
    raise DataError(f"{builder.name} has neither a test nor a validation split with labels.")


def _read(source: Any, place: str, rows: np.ndarray) -> Iterator[dict[str, Any]]:
    for start in range(0, len(rows), _CHUNK):
        try:
            yield from source.__getitems__(rows[start : start + _CHUNK].tolist())
        except Exception as error:  # the C++ reader raises many kinds of errors
            raise DataError(
                f"{place}, cannot be read: {error}. Delete that folder to prepare it again."
            ) from error


def _positions(ids: Iterable[Any]) -> np.ndarray | None:
    """The numbers at the end of such ids as ``train_16399``; None unless they are 0 to n - 1."""
    matches = [
        re.search(r"\d+$", value.decode() if isinstance(value, bytes) else str(value))
        for value in ids
    ]
    positions = np.array([int(match[0]) if match else -1 for match in matches])
    is_order = np.array_equal(np.sort(positions), np.arange(len(positions)))
    return positions if is_order else None


def _keys(builder: Any, image_size: int) -> tuple[str, str]:
    """The names of the image and of the label in an example."""
    import tensorflow_datasets as tfds

    features: Any = builder.info.features
    match builder.info.supervised_keys:
        case (str() as image, str() as label) if (
            len(features[image].shape or ()) == 3
            and features[image].np_dtype == np.uint8
            and isinstance(features[label], tfds.features.ClassLabel)
        ):
            pass
        case _:
            raise DataError(f"{builder.name} is not an image classification data set.")
    if None in features[image].shape and not image_size:
        raise DataError(
            f"The images of {builder.name} differ in size. Pass --image-size to resize them."
        )
    return image, label


def _prepare(builder: Any) -> None:
    """Downloads and prepares missing data, or raises immediately if there is no network."""
    if builder.is_prepared():
        return
    urls = list(builder.url_infos or ())
    if urls and not _is_reachable(urls[0]):
        raise DataError(
            f"{builder.name} is not prepared in {builder.data_path.parent.parent}, and"
            f" {urllib.parse.urlsplit(urls[0]).hostname} cannot be reached to download it. Prepare"
            " it once on a machine with a network (the same command does it), copy that folder and"
            " pass it as --data-dir. Or use --dataset digits, which needs no download."
        )
    try:
        with contextlib.suppress(FileExistsError):  # another process prepared it first
            builder.download_and_prepare()
    except ImportError as error:
        raise DataError(
            f"Preparing {builder.name} for the first time needs a package that is not installed"
            f" (reading it afterwards does not): {error}"
        ) from error


def _is_reachable(url: str) -> bool:
    """Whether a server answers within seconds, including the resolution of its name."""
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
