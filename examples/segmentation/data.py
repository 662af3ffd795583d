"""Images with a class at each pixel: PASCAL VOC 2012's files, and random crops."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
from PIL import Image

from examples.common.errors import DataError
from examples.common.reading import check_size, reading

IGNORED = 255
"""The label of pixels that are neither trained nor evaluated on."""
VOC_CLASSES = 21
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of the pixels of ImageNet
_HELD_OUT_EVERY = 10
_MOST_MAT_BYTES = 2**20  # The files have a few kB. zlib expands them at most 1,032 times.
_THREADS = ThreadPoolExecutor()  # Pillow releases Python's lock while it reads and resizes.


class Scenes(NamedTuple):
    """Images and their labels.

    Attributes:
      size: The number of images.
      read: From the index of an image to its pixels (h, w, 3) and labels (h, w), both uint8.
      may_be_mirrored: Whether mirror images are plausible. Mirrored digits are not.
    """

    size: int
    read: Callable[[int], tuple[np.ndarray, np.ndarray]]
    may_be_mirrored: bool = True


class Batch(NamedTuple):
    """Images (n, crop, crop, 3) and labels (n, crop, crop), uint8, and indices (n,), int32."""

    images: Any
    labels: Any
    index: Any


def batch(
    scenes: Scenes,
    index: np.ndarray,
    crop: int,
    scale: tuple[float, float],
    rng: np.random.Generator,
) -> Batch:
    """Cut random crops of random scale, and mirror half of them if that is allowed.

    The same ``rng`` gives the same crops. Pixels outside the image have the mean color and are
    ignored.
    """
    draws = [rng.random(4) for _ in index]  # in the order of the scenes, not of the threads

    def example(scene: int, draw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        image, labels = scenes.read(scene)
        factor = scale[0] + (scale[1] - scale[0]) * draw[0]
        height, width = (max(1, round(n * factor)) for n in labels.shape)
        image = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        labels = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
        image, labels = padded(np.asarray(image), crop), padded(np.asarray(labels), crop)
        y, x = (int(u * (n - crop + 1)) for u, n in zip(draw[1:], labels.shape, strict=False))
        image, labels = (a[y : y + crop, x : x + crop] for a in (image, labels))
        is_mirrored = draw[3] < 0.5 and scenes.may_be_mirrored
        return (image[:, ::-1], labels[:, ::-1]) if is_mirrored else (image, labels)

    images, labels = zip(*_THREADS.map(example, index.tolist(), draws), strict=True)
    return Batch(np.stack(images), np.stack(labels), index.astype(np.int32))


def padded(array: np.ndarray, size: int) -> np.ndarray:
    """Pad an image or labels at the bottom and right to at least ``size`` × ``size`` pixels."""
    height, width = (max(n, size) for n in array.shape[:2])
    result = np.empty((height, width, *array.shape[2:]), np.uint8)
    result[...] = IGNORED if array.ndim == 2 else np.round(MEAN)
    result[: array.shape[0], : array.shape[1]] = array
    return result


def voc(folder: Path, sbd: Path | None, *, validation: bool) -> tuple[Scenes, Scenes]:
    """Return VOC 2012's scenes for training, 1,464, and for testing, the 1,449 of its val set.

    Args:
      folder: VOC2012, with JPEGImages, SegmentationClass and ImageSets/Segmentation.
      sbd: The Semantic Boundaries Dataset (ICCV 2011), with ``cls/*.mat``. Its images that are not
        in val are added to training, which makes 10,582. VOC's own labels take precedence.
      validation: Test on every tenth training scene, which is then left out of training.

    Raises:
      DataError: If files are missing. ``Scenes.read`` raises it for damaged files.
    """
    masks = folder / "SegmentationClass"
    train, test = (_names(folder, split) for split in ("train", "val"))
    files = {name: masks / f"{name}.png" for name in (*train, *test)}
    if sbd is not None:
        others = {path.stem: path for path in sorted((sbd / "cls").glob("*.mat"))}
        if not others:
            raise DataError(
                f"{sbd / 'cls'} has no .mat files. --sbd is the folder of the Semantic Boundaries"
                " Dataset that has cls/, benchmark_RELEASE/dataset in its archive."
            )
        files = others | files
        train = sorted({*others, *train} - {*test})
    if validation:
        test = train[::_HELD_OUT_EVERY]
        train = sorted({*train} - {*test})
    images = folder / "JPEGImages"
    train_scenes, test_scenes = (
        _of_files([(images / f"{name}.jpg", files[name]) for name in names])
        for names in (train, test)
    )
    return train_scenes, test_scenes


def _names(folder: Path, split: str) -> list[str]:
    file = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    remedy = (
        "--data is the folder VOC2012 in VOCtrainval_11-May-2012.tar, with JPEGImages,"
        " SegmentationClass and ImageSets."
    )
    with reading(file, "a list of images", remedy):
        names = file.read_text().split()
    if not names:
        raise DataError(f"{file} names no images. {remedy}")
    return names


def _of_files(pairs: Sequence[tuple[Path, Path]]) -> Scenes:
    missing = [str(path) for pair in pairs for path in pair if not path.exists()]
    if missing:
        some = ", ".join(missing[:3]) + ", …" * (len(missing) > 3)
        raise DataError(
            f"--data: of {len(pairs)} images these files are missing: {some}. Unpack the whole"
            " archive."
        )

    def read(scene: int) -> tuple[np.ndarray, np.ndarray]:
        image_file, labels_file = pairs[scene]
        with reading(image_file, "an image", "Unpack it again."), Image.open(image_file) as file:
            image = np.asarray(file.convert("RGB"))
        labels = _read_labels(labels_file)
        if image.shape[:2] != labels.shape:
            raise DataError(
                f"{image_file} has {image.shape[:2]} pixels, but {labels_file} {labels.shape}."
                " Unpack both again."
            )
        if not np.isin(labels, [*range(VOC_CLASSES), IGNORED]).all():
            raise DataError(
                f"{labels_file} has labels that are neither 0 to {VOC_CLASSES - 1} nor {IGNORED}."
                " Unpack it again."
            )
        return image, labels.astype(np.uint8)

    return Scenes(len(pairs), read)


def _read_labels(path: Path) -> np.ndarray:
    """Read a PNG whose palette index is the class, or a .mat file of SBD."""
    with reading(path, "labels", "Unpack it again."):
        if path.suffix == ".mat":
            check_size(path, path.stat().st_size, _MOST_MAT_BYTES)
            return scipy.io.loadmat(path)["GTcls"]["Segmentation"][0, 0]
        with Image.open(path) as image:
            if image.mode != "P":
                raise ValueError(f"it is not a PNG with a palette, but of mode {image.mode}")
            return np.asarray(image)
