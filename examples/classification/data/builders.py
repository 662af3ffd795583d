"""Data sets that tensorflow-datasets lacks: builders of ours, and a folder of one's own images.

No download, no TensorFlow. Each training example's ``id``, ``train_N``, says its position in the
original order.
"""

import collections
import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from examples.classification.data.images import Files, decode
from examples.common import image_sets
from examples.common.errors import DataError

TINY_IMAGENET_FILE = "tiny-imagenet-200.zip"
_ZIP_FOLDER = "tiny-imagenet-200/"

_IMAGE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))
_TEST_FOLDERS = ("test", "val", "validation")


class Digits(tfds.core.GeneratorBasedBuilder):
    """scikit-learn's 1,797 handwritten digits, 8×8 pixels of 17 grey levels.

    Split as ``image_sets.digits`` has them.
    """

    VERSION = tfds.core.Version("1.1.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return _info(self, tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8), 10)

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(split, *image_sets.digits(split))
            for split in ("train", "test")
        }

    def _generate_examples(self, split, images, labels):
        yield from _examples(split, images, labels)


class FashionMnistFiles(tfds.core.GeneratorBasedBuilder):
    """Fashion-MNIST from its four idx.gz files: 60,000 and 10,000 images of 28×28 pixels.

    The configuration is named after the files' content, so that other files of this format
    (KMNIST's have the same names) are prepared apart.

    Raises:
      DataError: where a file is missing.
    """

    VERSION = tfds.core.Version("1.1.0")

    def __init__(self, *, folder: Path, **kwargs):
        self._folder = folder
        digest = hashlib.sha256()
        for path in sorted(image_sets.fashion_mnist_files(folder)):
            digest.update(path.read_bytes())
        config = tfds.core.BuilderConfig(name=f"sha256-{digest.hexdigest()[:16]}")
        super().__init__(config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return _info(self, tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8), 10)

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(split, *image_sets.fashion_mnist(split, self._folder))
            for split in ("train", "test")
        }

    def _generate_examples(self, split, images, labels):
        yield from _examples(split, images, labels)


class CifarFiles(tfds.core.GeneratorBasedBuilder):
    """CIFAR-10 or CIFAR-100 from the binary version's tar.gz: 50,000 and 10,000 of 32×32 pixels.

    The configuration is named after the file's content.

    Raises:
      DataError: where the file is missing or damaged, or is not of this data set.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, name: str, file: Path, **kwargs):
        self._data_set, self._path = name, image_sets.cifar_archive(name, Path(file))
        with self._path.open("rb") as archive:
            digest = hashlib.file_digest(archive, "sha256").hexdigest()
        super().__init__(config=tfds.core.BuilderConfig(name=f"{name}-{digest[:16]}"), **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Tensor(shape=(32, 32, 3), dtype=np.uint8)
        return _info(self, image, image_sets.CIFAR_FILES[self._data_set][1])

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split):
        yield from _examples(split, *image_sets.cifar(self._data_set, split, self._path))


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """Tiny ImageNet from its zip file: 100,000 and 10,000 colour images of 64×64 pixels.

    Its labelled validation images are the test set; the labels of its test images are not public.
    The 200 classes are in the order of ``wnids.txt``; the original order of the training images is
    by class, then by the number in their name. Some images are grey; they are read as coloured.

    The configuration is named after the names and checksums in the zip file's directory.

    Raises:
      DataError: where the file is missing, or is no whole zip file.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, file: Path | None, **kwargs):
        path = Path(file) if file else Path(TINY_IMAGENET_FILE)
        self._path = path / TINY_IMAGENET_FILE if path.is_dir() else path
        if not self._path.exists():
            raise DataError(
                f"There is no {self._path}. Download cs231n.stanford.edu/{TINY_IMAGENET_FILE} and"
                " pass it, or its folder, as --data-files."
            )
        digest = hashlib.sha256()
        with self._open() as archive:
            for entry in archive.infolist():
                digest.update(f"{entry.filename} {entry.CRC}\n".encode())
        config = tfds.core.BuilderConfig(name=f"sha256-{digest.hexdigest()[:16]}")
        super().__init__(config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(64, 64, 3), encoding_format="jpeg")
        return _info(self, image, 200)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split):
        with self._open() as archive:
            wnids = self._read(archive, "wnids.txt").decode().split()
            labelled = (self._train if split == "train" else self._test)(archive, wnids)
            for i, (file, label) in enumerate(labelled):
                content = self._read(archive, file)
                decode(f"{file} in {self._path}", content, channels=3)  # or an error, now
                yield i, _example(split, i, io.BytesIO(content), label)

    def _train(self, archive: zipfile.ZipFile, wnids: list[str]) -> Iterator[tuple[str, int]]:
        files = collections.defaultdict(list)
        for name in archive.namelist():
            match name.removeprefix(_ZIP_FOLDER).split("/"):
                case ["train", wnid, "images", image] if image.endswith(".JPEG"):
                    files[wnid].append(f"train/{wnid}/images/{image}")
        for label, wnid in enumerate(wnids):
            if not files[wnid]:
                raise self._broken(f"has no training images of {wnid}")
            for file in sorted(files[wnid], key=lambda file: (len(file), file)):  # 9 before 10
                yield file, label

    def _test(self, archive: zipfile.ZipFile, wnids: list[str]) -> Iterator[tuple[str, int]]:
        annotations = "val/val_annotations.txt"
        for line in self._read(archive, annotations).decode().splitlines():
            file, wnid, *_ = [*line.split("\t"), ""]
            if wnid not in wnids:
                raise self._broken(f"has an unknown class in {annotations}: {line!r}")
            yield f"val/images/{file}", wnids.index(wnid)

    def _read(self, archive: zipfile.ZipFile, file: str) -> bytes:
        try:
            return archive.read(f"{_ZIP_FOLDER}{file}")
        except KeyError:
            raise self._broken(f"lacks {file}") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise self._broken(f"is damaged: {file} cannot be read ({error})") from error

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._path)
        except (zipfile.BadZipFile, OSError) as error:
            raise self._broken(f"cannot be opened as a zip file: {error}") from error

    def _broken(self, what: str) -> DataError:
        return DataError(f"{self._path} {what}. Download it again.")


class LabelledFiles(NamedTuple):
    """Image files in the order of their classes, and their labels, (n,) in int32."""

    files: Files
    labels: np.ndarray


def read_image_folder(folder: Path | None) -> tuple[list[str], LabelledFiles, LabelledFiles]:
    """Finds the images in FOLDER/train/CLASS/ and FOLDER/test/CLASS/ (or val, validation).

    Returns:
      The classes, which are the sorted names of the folders in train, and the training and the
      test images; of a class they are sorted by name.

    Raises:
      DataError: where a folder is missing or empty, or a test class is none of the training set.
    """
    if folder is None or not Path(folder).is_dir():
        raise DataError(
            f"There is no folder {folder}. Pass the folder that has the images in train/CLASS/ and"
            " test/CLASS/ as --data-files."
            if folder
            else "image_folder needs --data-files: the folder that has the images in train/CLASS/"
            " and test/CLASS/."
        )
    train = Path(folder) / "train"
    tests = [Path(folder) / name for name in _TEST_FOLDERS if (Path(folder) / name).is_dir()]
    if not train.is_dir() or not tests:
        raise DataError(
            f"{folder} needs the folder train and one of {', '.join(_TEST_FOLDERS)}, and in both a"
            " folder of images for each class."
        )
    classes = _class_names(train)
    if len(classes) < 2:
        raise DataError(
            f"{train} has one class only, {classes[0]}; there is nothing to tell apart."
        )
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
    return LabelledFiles(Files(folder, names), np.array(labels, np.int32))


def _info(builder, image: Any, num_classes: int) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=builder,
        features=tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(),
                "image": image,
                "label": tfds.features.ClassLabel(num_classes=num_classes),
            }
        ),
        supervised_keys=("image", "label"),
    )


def _examples(
    split: str, images: np.ndarray, labels: np.ndarray
) -> Iterator[tuple[int, dict[str, Any]]]:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield i, _example(split, i, image, int(label))


def _example(split: str, i: int, image: Any, label: int) -> dict[str, Any]:
    return {"id": f"{split}_{i}", "image": image, "label": label}
