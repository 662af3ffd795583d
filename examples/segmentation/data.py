"""Images with a class at each pixel: PASCAL VOC 2012's from its files, and how batches are cut."""

import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
from PIL import Image

from examples.common.errors import DataError

IGNORED = 255
"""The label of pixels that neither train nor count."""
VOC_CLASSES = 21
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet's pixels
_HELD_OUT_EVERY = 10
_DAMAGES = (OSError, SyntaxError)  # what Pillow raises
_MAT_DAMAGES = (
    *(ValueError, KeyError, TypeError, IndexError, NotImplementedError),
    *(zlib.error, scipy.io.matlab.MatReadError),
)
_THREADS = ThreadPoolExecutor()  # Pillow reads and resizes without Python's lock


class Scenes(NamedTuple):
    """Images and their labels; ``read`` gives those of one: (h, w, 3) and (h, w), uint8.

    ``may_be_mirrored`` says whether a mirror image shows what could be seen, too, as of no digit.
    """

    size: int
    read: Callable[[int], tuple[np.ndarray, np.ndarray]]
    may_be_mirrored: bool = True


class Batch(NamedTuple):
    """Images (n, crop, crop, 3) and labels (n, crop, crop), uint8.

    ``index`` (n,), int32, says which scenes they are of.
    """

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
    """Random crops of random scale, every second one mirrored, if it may be; the same for the same
    ``rng``.

    What a crop has beside the image is of the mean color, and ignored.
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
    """An image or labels, at least ``size`` high and wide: filled up at the bottom and right."""
    height, width = (max(n, size) for n in array.shape[:2])
    result = np.empty((height, width, *array.shape[2:]), np.uint8)
    result[...] = IGNORED if array.ndim == 2 else np.round(MEAN)
    result[: array.shape[0], : array.shape[1]] = array
    return result


def voc(folder: Path, sbd: Path | None, *, validation: bool) -> tuple[Scenes, Scenes]:
    """VOC 2012's scenes for training and for testing: 1,464 and 1,449, its val set.

    Args:
      folder: VOC2012, with JPEGImages, SegmentationClass and ImageSets/Segmentation.
      sbd: of the Semantic Boundaries Dataset (ICCV 2011), with ``cls/*.mat``: all that it labels
        and is not in val trains, too, which makes 10,582. What VOC itself labels has VOC's labels.
      validation: tests on every tenth scene for training, which then does not train.

    Raises:
      DataError: for what is missing; ``read`` for what is damaged.
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
    parts = []
    for names in (train, test):
        pairs = [(folder / "JPEGImages" / f"{name}.jpg", files[name]) for name in names]
        missing = [str(path) for pair in pairs for path in pair if not path.exists()]
        if missing:
            some = ", ".join(missing[:3]) + ", …" * (len(missing) > 3)
            raise DataError(
                f"--data {folder}: of {len(names)} images these files are missing: {some}. Unpack"
                " the whole archive."
            )
        parts.append(_of_files(pairs))
    return parts[0], parts[1]


def _names(folder: Path, split: str) -> list[str]:
    file = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    try:
        names = file.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file} cannot be read: {error}. --data is the folder VOC2012 in"
            " VOCtrainval_11-May-2012.tar, with JPEGImages, SegmentationClass and ImageSets."
        ) from error
    if not names:
        raise DataError(f"{file} names no images.")
    return names


def _of_files(pairs: Sequence[tuple[Path, Path]]) -> Scenes:
    def read(scene: int) -> tuple[np.ndarray, np.ndarray]:
        image_file, labels_file = pairs[scene]
        image, labels = _read_image(image_file), _read_labels(labels_file)
        if image.shape[:2] != labels.shape:
            raise DataError(
                f"{image_file} has {image.shape[:2]} pixels, but {labels_file} {labels.shape}."
            )
        if labels[labels != IGNORED].max(initial=0) >= VOC_CLASSES:
            raise DataError(
                f"{labels_file} has labels that are neither 0 to {VOC_CLASSES - 1} nor {IGNORED}."
            )
        return image, labels.astype(np.uint8)

    return Scenes(len(pairs), read)


def _read_image(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except _DAMAGES as error:
        raise DataError(f"{file} cannot be read: {error!r}. Unpack it again.") from error


def _read_labels(file: Path) -> np.ndarray:
    """From a PNG with a palette, whose index is the class, or a .mat file of SBD."""
    try:
        if file.suffix == ".mat":
            mode, labels = "P", scipy.io.loadmat(file)["GTcls"]["Segmentation"][0, 0]
        else:
            with Image.open(file) as image:
                mode, labels = image.mode, np.asarray(image)
    except (*_DAMAGES, *_MAT_DAMAGES) as error:
        raise DataError(f"{file} cannot be read: {error!r}. Unpack it again.") from error
    if mode != "P":
        raise DataError(f"{file} is no PNG with a palette, but of mode {mode}.")
    return labels
