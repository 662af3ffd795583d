"""Images that are read when they are needed: a folder, and Tiny ImageNet's zip file."""

import collections
import io
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from examples.common.errors import DataError
from examples.common.reading import check_size, reading

TINY_IMAGENET_FILE = "tiny-imagenet-200.zip"
_TEST_FOLDERS = ("test", "val", "validation")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names, by the number of channels


class Images:
    """Images of one size, which are read when they are indexed like an array.

    Args:
      read: returns the content of the example at a position, and its name or path for error
        messages. The content is an array (height, width, channels) in uint8, or the bytes of an
        image file.
      rows: (n,), the positions of the images of this object.
      shape: (height, width, channels) of each image.
      is_resized: whether images of other sizes are resized to this shape. Otherwise they raise.
    """

    def __init__(
        self,
        read: Callable[[int], tuple[bytes | np.ndarray, str]],
        rows: np.ndarray,
        shape: tuple[int, ...],
        is_resized: bool = False,
    ):
        self._read, self._rows, self._is_resized = read, rows, is_resized
        self.shape = (len(rows), *shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: np.ndarray | slice, /) -> np.ndarray:
        """Reads images, (k, height, width, channels). DataError names one that cannot be read."""
        rows = self._rows[index]
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for image, row in zip(images, rows, strict=True):
            image[:] = self._decoded(*self._read(row))
        return images

    def select(self, rows: np.ndarray) -> "Images":
        """The images at these positions."""
        return Images(self._read, self._rows[rows], self.shape[1:], self._is_resized)

    def _decoded(self, content: bytes | np.ndarray, name: str) -> np.ndarray:
        shape = self.shape[1:]
        if isinstance(content, bytes) or (self._is_resized and content.shape != shape):
            content = decode(content, name, shape[2], shape[:2] if self._is_resized else None)
        if content.shape != shape:
            sizes = ["×".join(map(str, size)) for size in (content.shape, shape)]
            raise DataError(
                f"{name} has {sizes[0]} pixels and others {sizes[1]}. Pass --image-size to resize"
                " all images to one size."
            )
        return content


class Split(NamedTuple):
    """The images of a split and their labels, (n,) in int32."""

    images: Images
    labels: np.ndarray


Splits = tuple[Split, Split, int]
"""The training set, the test set and the number of classes."""


def decode(
    content: bytes | np.ndarray, name: str, channels: int, size: tuple[int, ...] | None = None
) -> np.ndarray:
    """The pixels of an image file, (height, width, channels) in uint8.

    Grey images are converted to coloured ones, or the other way round, according to ``channels``.

    Args:
      content: the bytes of the file, or the pixels of an image to resize.
      size: the height and width to resize to, bilinearly with antialiasing; None keeps the size.

    Raises:
      DataError: if it cannot be decoded. The message contains ``name``.
    """
    with reading(name, "an image", "Replace or remove it."):
        if isinstance(content, bytes):
            image = Image.open(io.BytesIO(content)).convert(_MODES[channels])
        else:
            image = Image.fromarray(content[..., 0] if channels == 1 else content)
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, channels)


def read_folder(folder: Path | None, image_size: int) -> Splits:
    """Finds the images in FOLDER/train/CLASS/ and FOLDER/test/CLASS/ (or val, validation).

    The classes are the sorted names of the folders in train. The images of a class are sorted by
    name.

    Raises:
      DataError: if a folder is missing or empty, or a test class is not in the training set.
    """
    train = (folder or Path()) / "train"
    tests = [train.with_name(name) for name in _TEST_FOLDERS if train.with_name(name).is_dir()]
    if folder is None or not train.is_dir() or not tests:
        raise DataError(
            "--data-files must be a folder that has the folder train and one of"
            f" {', '.join(_TEST_FOLDERS)}, each with a folder of images for each class, not"
            f" {folder}."
        )
    files = {part: _files_of_classes(part) for part in (train, tests[0])}
    classes = list(files[train])
    if len(classes) < 2:
        raise DataError(f"{train} has {len(classes)} folders of classes. It needs at least two.")
    unknown = files[tests[0]].keys() - files[train].keys()
    if unknown:
        raise DataError(f"{tests[0]} has classes that {train} lacks: {', '.join(sorted(unknown))}.")

    def read(path: Path) -> tuple[bytes, str]:
        with reading(path, "a file", "Replace or remove it."):
            return path.read_bytes(), str(path)

    labelled = [
        [(path, classes.index(name)) for name, paths in own.items() for path in paths]
        for own in files.values()
    ]
    return _splits(labelled[0], labelled[1], read, len(classes), image_size)


def read_tiny_imagenet(path: Path | None, image_size: int) -> Splits:
    """Finds the 100,000 training and 10,000 test images of Tiny ImageNet in its zip file.

    The labelled validation images are the test set, since the labels of the test images are not
    public. The 200 classes are in the order of ``wnids.txt``. The training images are sorted by
    class and then by the number in their name.

    Args:
      path: the zip file or its folder; None for the current folder.

    Raises:
      DataError: if the file is missing or damaged.
    """
    path = path or Path(TINY_IMAGENET_FILE)
    path = path / TINY_IMAGENET_FILE if path.is_dir() else path
    if not path.exists():
        raise DataError(
            f"There is no {path}. Download cs231n.stanford.edu/{TINY_IMAGENET_FILE} and pass it, or"
            " its folder, as --data-files."
        )
    lock = threading.Lock()  # several threads may read

    def read(name: str) -> tuple[bytes, str]:
        place = f"{name} in {path}"
        with reading(place, "a file"), lock:
            member = archive.getinfo(name)
            check_size(place, member.file_size)
            return archive.read(member), place

    with reading(path, "the zip file of Tiny ImageNet"):
        archive = zipfile.ZipFile(path)
        root = TINY_IMAGENET_FILE.removesuffix(".zip")
        classes = read(f"{root}/wnids.txt")[0].decode().split()
        images = collections.defaultdict(list)
        for name in archive.namelist():
            match name.split("/"):
                case [_, "train", wnid, "images", image] if image.endswith(".JPEG"):
                    images[wnid].append(name)
        missing = [wnid for wnid in classes if wnid not in images]
        lines = read(f"{root}/val/val_annotations.txt")[0].decode().splitlines()
        if missing or not classes or not lines:
            raise ValueError(f"no images of {', '.join(missing[:3]) or 'any class'}")
        train = [
            (name, label)
            for label, wnid in enumerate(classes)
            for name in sorted(images[wnid], key=lambda name: (len(name), name))  # 9 before 10
        ]
        test = [
            (f"{root}/val/images/{file}", classes.index(wnid))
            for file, wnid, *_ in (line.split("\t") for line in lines)
        ]
        return _splits(train, test, read, len(classes), image_size)


def _files_of_classes(folder: Path) -> dict[str, list[Path]]:
    """The image files in each folder of a folder."""
    visible = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    files = {
        path.name: [
            file
            for file in sorted(path.iterdir())
            if file.suffix.lower() in Image.registered_extensions() and file.name[0] != "."
        ]
        for path in visible
        if path.is_dir()
    }
    empty = [name for name, own in files.items() if not own]
    if empty:
        raise DataError(f"{folder / empty[0]} has no images. Remove it or add some.")
    return files


def _splits(
    train: list[tuple], test: list[tuple], read: Callable, num_classes: int, image_size: int
) -> Splits:
    """The splits of a data set whose files have labels, from the name and label of each file."""
    shape = (image_size, image_size, 3)
    if not image_size:
        shape = decode(*read(train[0][0]), channels=3).shape

    def split(files: list[tuple]) -> Split:
        images = Images(
            lambda row: read(files[row][0]), np.arange(len(files)), shape, bool(image_size)
        )
        return Split(images, np.array([label for _, label in files], np.int32))

    return split(train), split(test), num_classes
