"""Images in files: a folder of one's own images, and the zip file of Tiny ImageNet."""

import collections
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.classification.images import decode, read_file
from examples.common.errors import DataError
from examples.common.reading import DAMAGE

TINY_IMAGENET_FILE = "tiny-imagenet-200.zip"
_ZIP_FOLDER = "tiny-imagenet-200/"
_IMAGE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))
_TEST_FOLDERS = ("test", "val", "validation")


class LabelledFiles(NamedTuple):
    """Image files and their labels, (n,) in int32.

    Attributes:
      read_one: a name for error messages, and the bytes of the image file of this name.
    """

    names: list[str]
    labels: np.ndarray
    read_one: Callable[[str], tuple[str, bytes]]

    def read(self, rows: np.ndarray) -> Iterator[tuple[str, bytes]]:
        for row in rows:
            yield self.read_one(self.names[row])

    def shape_of_first(self) -> tuple[int, ...]:
        return decode(*self.read_one(self.names[0]), channels=3).shape


Labelled = tuple[list[str], LabelledFiles, LabelledFiles]
"""The classes, the training images and the test images."""


def read_folder(folder: Path | None) -> Labelled:
    """Finds the images in FOLDER/train/CLASS/ and FOLDER/test/CLASS/ (or val, validation).

    The classes are the sorted names of the folders in train. The images of a class are sorted by
    name.

    Raises:
      DataError: if a folder is missing or empty, or a test class is not in the training set.
    """
    if folder is None or not folder.is_dir():
        raise DataError(
            f"--data-files must be the folder with the images in train/CLASS/ and test/CLASS/;"
            f" {'it is not given' if folder is None else f'there is no folder {folder}'}."
        )
    train = folder / "train"
    tests = [folder / name for name in _TEST_FOLDERS if (folder / name).is_dir()]
    if not train.is_dir() or not tests:
        raise DataError(
            f"{folder} needs the folder train and one of {', '.join(_TEST_FOLDERS)}. Both must have"
            " a folder of images for each class."
        )
    classes = _class_names(train)
    if len(classes) < 2:
        raise DataError(f"{train} has only one class, {classes[0]}. Add a folder for another one.")
    unknown = sorted({*_class_names(tests[0])} - {*classes})
    if unknown:
        raise DataError(f"{tests[0]} has classes that {train} lacks: {', '.join(unknown)}.")
    return classes, _labelled_files(train, classes), _labelled_files(tests[0], classes)


def _class_names(folder: Path) -> list[str]:
    names = sorted(path.name for path in _visible(folder) if path.is_dir())
    if not names:
        raise DataError(f"{folder} has no folders of classes.")
    return names


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _labelled_files(folder: Path, classes: list[str]) -> LabelledFiles:
    names, labels = [], []
    for name in _class_names(folder):
        own = sorted(
            f"{name}/{path.name}"
            for path in _visible(folder / name)
            if path.suffix.lower() in _IMAGE_SUFFIXES
        )
        if not own:
            raise DataError(f"{folder / name} has no images. Remove it or add some.")
        names += own
        labels += [classes.index(name)] * len(own)

    def read_one(name: str) -> tuple[str, bytes]:
        return str(folder / name), read_file(folder / name)

    return LabelledFiles(names, np.array(labels, np.int32), read_one)


def read_tiny_imagenet(path: Path | None) -> Labelled:
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
    archive = _Zip(path)
    classes = archive.read("wnids.txt").decode(errors="replace").split()
    images = collections.defaultdict(list)
    for name in archive.names:
        match name.split("/"):
            case ["train", wnid, "images", image] if image.endswith(".JPEG"):
                images[wnid].append(name)
    missing = [wnid for wnid in classes if not images[wnid]]
    if missing or not classes:
        raise archive.error(f"has no training images of {', '.join(missing[:3]) or 'any class'}")
    train = [
        (name, label)
        for label, wnid in enumerate(classes)
        for name in sorted(images[wnid], key=lambda name: (len(name), name))  # 9 before 10
    ]
    test = []
    for line in archive.read("val/val_annotations.txt").decode(errors="replace").splitlines():
        file, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in classes:
            raise archive.error(f"has an unknown class in val/val_annotations.txt: {line!r}")
        test.append((f"val/images/{file}", classes.index(wnid)))
    if not test:
        raise archive.error("has no annotations in val/val_annotations.txt")
    return classes, archive.labelled(train), archive.labelled(test)


class _Zip:
    """The zip file of Tiny ImageNet, which several threads may read."""

    def __init__(self, path: Path):
        self._path, self._lock = path, threading.Lock()
        try:
            self._archive = zipfile.ZipFile(path)
        except DAMAGE as error:
            raise self.error(f"cannot be opened as a zip file: {error}") from error
        self.names = [name.removeprefix(_ZIP_FOLDER) for name in self._archive.namelist()]

    def read(self, name: str) -> bytes:
        try:
            with self._lock:
                return self._archive.read(f"{_ZIP_FOLDER}{name}")
        except KeyError:
            raise self.error(f"lacks {name}") from None
        except DAMAGE as error:
            raise self.error(f"is damaged: {name} cannot be read ({error})") from error

    def labelled(self, files: Iterable[tuple[str, int]]) -> LabelledFiles:
        names, labels = zip(*files, strict=True)

        def read_one(name: str) -> tuple[str, bytes]:
            return f"{name} in {self._path}", self.read(name)

        return LabelledFiles(list(names), np.array(labels, np.int32), read_one)

    def error(self, what: str) -> DataError:
        return DataError(f"{self._path} {what}. Download it again.")
