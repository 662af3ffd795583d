"""Predictions for whole images, their accuracy, and figures of them."""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from examples.common.pictures import write_picture
from examples.segmentation.data import IGNORED, padded

_BATCH = 16
_LEAST_SIDE = 192  # of an image in a figure, in pixels


def predict(
    softmax: Callable[[np.ndarray], np.ndarray],
    images: Sequence[np.ndarray],
    num_classes: int,
    crop: int,
    stride: float,
) -> list[np.ndarray]:
    """Return the most probable classes of images of any size, each (height, width), uint8.

    Windows of ``crop`` pixels cover an image, and smaller images are padded. The softmaxes of
    overlapping windows are averaged.

    Args:
      softmax: A function from images (16, crop, crop, 3) to (16, crop, crop, classes).
      images: Images (height, width, 3) in uint8.
      num_classes: The number of classes.
      crop: Pixels along a side of a window.
      stride: The distance of the windows, relative to ``crop``.
    """
    whole = [padded(image, crop) for image in images]
    windows = [
        (image, y, x)
        for image, pixels in enumerate(whole)
        for y, x in itertools.product(*(_starts(n, crop, stride) for n in pixels.shape[:2]))
    ]
    sums = [np.zeros((*pixels.shape[:2], num_classes), np.float32) for pixels in whole]
    for first in range(0, len(windows), _BATCH):
        some = windows[first : first + _BATCH]
        filled = some + [some[-1]] * (_BATCH - len(some))  # Batches have one shape.
        pixels = np.stack([whole[i][y : y + crop, x : x + crop] for i, y, x in filled])
        for (i, y, x), values in zip(some, np.asarray(softmax(pixels)), strict=False):
            sums[i][y : y + crop, x : x + crop] += values
    return [
        total.argmax(-1).astype(np.uint8)[: image.shape[0], : image.shape[1]]
        for total, image in zip(sums, images, strict=True)
    ]


def _starts(length: int, crop: int, stride: float) -> list[int]:
    """Return where windows that cover ``length`` pixels start. The last ends at the last pixel."""
    step = max(1, round(stride * crop))
    return [min(i * step, length - crop) for i in range(1 + math.ceil((length - crop) / step))]


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count pixels by true class (rows) and predicted class (columns), (classes, classes)."""
    counts = labels != IGNORED
    pairs = num_classes * labels[counts].astype(np.int64) + predicted[counts]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def measures(matrix: np.ndarray) -> dict[str, float]:
    """Return percentages from the confusion matrix of a whole data set.

    ``mean_iou`` is the mean of intersection over union, and ``mean_accuracy`` the mean of recall,
    each over the classes for which it is defined. ``accuracy`` is over all pixels.
    """
    right, real, found = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    union = real + found - right
    return {
        "mean_iou": 100 * float(np.mean(right[union > 0] / union[union > 0])),
        "mean_accuracy": 100 * float(np.mean(right[real > 0] / real[real > 0])),
        "accuracy": 100 * float(right.sum() / real.sum()),
    }


def draw(
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
    path: Path,
) -> None:
    """Draw a row for each image: the image, its labels and the predicted ones in VOC's colors."""
    rows = []
    for image, *maps in zip(images, labels, predicted, strict=True):
        row = np.concatenate([image, *(PALETTE[classes] for classes in maps)], axis=1)
        zoom = max(1, -(-_LEAST_SIDE // len(image)))
        rows.append(row.repeat(zoom, 0).repeat(zoom, 1))
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    write_picture(path, Image.fromarray(np.concatenate(rows)).save)


def _voc_palette() -> np.ndarray:
    """Return VOC's color of each label, (256, 3), uint8.

    Bits 0, 1 and 2 of a label are the highest bits of red, green and blue, bits 3, 4 and 5 the
    second highest, and so on.
    """
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    planes = np.pad(bits, ((0, 0), (0, 1))).reshape(256, 3, 3)  # label, plane, channel
    return (planes << np.array([7, 6, 5], np.uint8)[:, None]).sum(1, dtype=np.uint8)


PALETTE = _voc_palette()
