"""The data sets of tensorflow-datasets, which prepares them on their first use."""

import contextlib
import logging
import socket
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from examples.classification.image_files import Images, Split, Splits
from examples.common.errors import DataError

_TIMEOUT = 5  # seconds; without a network, tensorflow-datasets itself gives up after minutes


def find(name: str, data_dir: Path | None, image_size: int) -> tuple[Any, tuple[int, ...], int]:
    """The builder of a data set, the shape of its images and the number of classes.

    Raises:
      DataError: if there is no such data set, it is no image classification, or its images differ
        in size and are not resized.
    """
    try:
        builder = tfds.builder(name, try_gcs=False, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise DataError(f"There is no data set named {name!r}: {error}") from error
    image_key, label_key = _keys(builder)
    features: Any = builder.info.features
    shape = features[image_key].shape
    if image_size:
        shape = (image_size, image_size, shape[-1])
    if None in shape:
        raise DataError(f"The images of {name} differ in size. Pass --image-size to resize them.")
    return builder, shape, features[label_key].num_classes


def load(builder: Any, shape: tuple[int, ...], num_classes: int) -> Splits:
    """The training and the test set.

    Raises:
      DataError: if the data set has no labelled test set, or is neither prepared nor can be
        downloaded.
    """
    tfds.disable_progress_bar()
    logging.getLogger("absl").setLevel(logging.ERROR)  # "has no dataset_info.json", on first use
    image_key, label_key = _keys(builder)
    _prepare(builder)

    def split(name: str) -> Split:
        source = builder.as_data_source(name, decoders={image_key: tfds.decode.SkipDecoding()})

        def example(row: int) -> dict[str, Any]:
            try:
                return source[int(row)]
            except Exception as error:  # the C++ reader raises many kinds of errors
                raise DataError(
                    f"{builder.data_path}, split {name}, cannot be read: {error}. Delete that"
                    " folder to prepare it again."
                ) from error

        def read(row: int) -> tuple[Any, str]:
            return example(row)[image_key], f"Example {row} of {builder.data_path}, split {name}"

        rows = range(len(source))
        labels = np.array([example(row)[label_key] for row in rows], np.int32)
        return Split(Images(read, np.array(rows), shape, is_resized=True), labels)

    for name in ("test", "validation"):
        if name in builder.info.splits:
            test = split(name)
            if test.labels.min(initial=0) >= 0:  # secret labels are -1
                return split("train"), test, num_classes
    raise DataError(f"{builder.name} has neither a test nor a validation split with labels.")


def _keys(builder: Any) -> tuple[str, str]:
    """The names of the image and of the label in an example."""
    features: Any = builder.info.features
    match builder.info.supervised_keys:
        case (str() as image, str() as label) if (
            len(features[image].shape or ()) == 3
            and features[image].np_dtype == np.uint8
            and isinstance(features[label], tfds.features.ClassLabel)
        ):
            return image, label
    raise DataError(f"{builder.name} is not an image classification data set.")


def _prepare(builder: Any) -> None:
    """Downloads and prepares missing data, or raises within seconds if there is no network."""
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
    if urllib.request.getproxies():
        return True  # only the proxy can tell
    parts = urllib.parse.urlsplit(url)
    port = parts.port or {"http": 80, "ftp": 21}.get(parts.scheme, 443)
    try:
        socket.create_connection((parts.hostname, port), _TIMEOUT).close()
    except OSError:
        return False
    return True
