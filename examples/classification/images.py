"""Images in memory, or in files that are read and decoded when they are needed."""

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from examples.common.errors import DataError
from examples.common.reading import DAMAGE

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names, by the number of channels
_STATISTICS_IMAGES = 2000


class Images(Protocol):
    """Images of one size: a NumPy array (n, height, width, channels) in uint8, or ``Records``."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> np.ndarray:
        """The images at an array of positions or in a slice, (k, height, width, channels)."""
        ...


class Records:
    """Images in files.

    Args:
      read: yields the content of the examples at the given positions, each with a name for error
        messages: an array (height, width, channels) in uint8, or the bytes of an image file.
      rows: (n,), the positions of the images of this object.
      shape: (height, width, channels) of each image.
      is_resized: whether images of other sizes are resized to this shape. Otherwise they raise.
    """

    def __init__(
        self,
        read: Callable[[np.ndarray], Iterable[tuple[str, bytes | np.ndarray]]],
        rows: np.ndarray,
        shape: tuple[int, ...],
        is_resized: bool,
    ):
        self._read, self._rows, self._is_resized = read, rows, is_resized
        self.shape = (len(rows), *shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: np.ndarray | slice, /) -> np.ndarray:
        """Reads the images. Raises DataError with the name of one that cannot be read."""
        rows = self._rows[index]
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for image, (name, content) in zip(images, self._read(rows), strict=True):
            image[:] = self._decode(name, content)
        return images

    def select(self, rows: np.ndarray) -> "Records":
        """The images at these positions."""
        return Records(self._read, self._rows[rows], self.shape[1:], self._is_resized)

    def _decode(self, name: str, content: bytes | np.ndarray) -> np.ndarray:
        _, height, width, channels = self.shape
        if isinstance(content, bytes) or (self._is_resized and content.shape != self.shape[1:]):
            content = decode(name, content, channels, (height, width) if self._is_resized else None)
        if content.shape != self.shape[1:]:
            raise DataError(
                f"{name} has {_size(content.shape)} pixels and others {_size(self.shape[1:])}. Pass"
                " --image-size to resize all images to one size."
            )
        return content


class Dataset(NamedTuple):
    """A training set and the images to evaluate on; labels (n,) in int32.

    Attributes:
      mean: (channels,) float32, over training images.
      std: the standard deviation, likewise.
      train_index: (n,), the position of each training example in the original order of the whole
        training set. None if the data set does not tell.
      num_original: the size of the whole training set.
    """

    name: str
    train_images: Images
    train_labels: np.ndarray
    held_out_images: Images
    held_out_labels: np.ndarray
    num_classes: int
    mean: np.ndarray
    std: np.ndarray
    train_index: np.ndarray | None
    num_original: int


def decode(
    name: str, content: bytes | np.ndarray, channels: int, size: tuple[int, int] | None = None
) -> np.ndarray:
    """The pixels of an image file, (height, width, channels) in uint8.

    Grey images are converted to coloured ones, or the other way round, according to ``channels``.

    Args:
      content: the bytes of the file, or the pixels of an image to resize.
      size: the height and width to resize to, bilinearly with antialiasing; None keeps the size.

    Raises:
      DataError: if it cannot be decoded. The message contains ``name``.
    """
    try:
        if isinstance(content, bytes):
            image = Image.open(io.BytesIO(content)).convert(_MODES[channels])
        else:
            image = Image.fromarray(content[..., 0] if channels == 1 else content)
    except DAMAGE as error:
        raise DataError(
            f"{name} cannot be decoded as an image: {error}. Replace or remove it."
        ) from error
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, channels)


def mean_and_std(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Of each channel, (channels,) in float32, over at most 2,000 images that are always the same.

    The standard deviation is at least 1e-3.
    """
    rows = np.random.default_rng(0).permutation(len(images))[:_STATISTICS_IMAGES]
    pixels = images[np.sort(rows)]
    counts = [np.bincount(pixels[..., i].ravel(), minlength=256) for i in range(pixels.shape[-1])]
    levels, share = np.arange(256), np.array(counts) / pixels[..., 0].size
    mean = share @ levels
    variance = np.sum(share * (levels - mean[:, None]) ** 2, 1)
    return mean.astype(np.float32), np.maximum(np.sqrt(variance), 1e-3).astype(np.float32)


def read_file(path: Path) -> bytes:
    """The content of an image file. Raises DataError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}. Replace or remove it.") from error


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
