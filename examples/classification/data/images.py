"""Images in memory, or in files and then read and decoded only when they are asked for.

And the data sets made of them.
"""

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from examples.common.errors import DataError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names, by the number of channels
_CHUNK = 500  # images that are held twice


class Images(Protocol):
    """Images of one size: a NumPy array (n, height, width, channels) in uint8, or ``Records``."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> np.ndarray:
        """The images of an array of positions or a slice, (k, height, width, channels) uint8."""
        ...


class Records:
    """Images in files; can be pickled, for other processes to read them.

    Args:
      read: yields the content of the examples at the given positions, each with a name for
        messages: an array (height, width, channels) in uint8, or the bytes of an image file.
      rows: (n,), the positions that are this object's images.
      shape: (height, width, channels) of each.
      is_resized: whether images of other sizes are resized to this shape, rather than errors.
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
        """Reads the images. Raises DataError, with the name of the one that cannot be read."""
        rows = self._rows[index]
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for image, (name, content) in zip(images, self._read(rows), strict=True):
            image[:] = self._decode(name, content)
        return images

    def of(self, rows: np.ndarray) -> "Records":
        """Those of the images, at these positions."""
        _, *shape = self.shape
        return Records(self._read, self._rows[rows], tuple(shape), self._is_resized)

    def _decode(self, name: str, content: bytes | np.ndarray) -> np.ndarray:
        _, height, width, channels = self.shape
        if isinstance(content, bytes) or (self._is_resized and content.shape != self.shape[1:]):
            content = decode(name, content, channels, (height, width) if self._is_resized else None)
        if content.shape != self.shape[1:]:
            raise DataError(
                f"{name} has {_size(content.shape)} pixels and others {_size(self.shape[1:])}. Pass"
                " --image-size to resize all to one size."
            )
        return content


class Dataset(NamedTuple):
    """Images (n, height, width, channels) in uint8, see ``Images``; labels (n,) in int32.

    ``mean`` and ``std``, (channels,) in float32, are those of the training images.
    ``train_index`` (n,) says where each training example is among the ``num_original`` of the
    whole training set in its original order; None if the data set does not tell.
    """

    name: str
    train_images: Images
    train_labels: np.ndarray
    validation_images: Images | None
    validation_labels: np.ndarray | None
    test_images: Images
    test_labels: np.ndarray
    num_classes: int
    mean: np.ndarray
    std: np.ndarray
    train_index: np.ndarray | None
    num_original: int

    @property
    def evaluation(self) -> tuple[Images, np.ndarray]:
        """The images and labels to evaluate on: for validation if there are, or else the test's."""
        if self.validation_images is None or self.validation_labels is None:
            return self.test_images, self.test_labels
        return self.validation_images, self.validation_labels


class Files(NamedTuple):
    """The files of a folder, as ``Records`` reads them."""

    folder: Path
    names: list[str]

    def __call__(self, rows: np.ndarray) -> Iterable[tuple[str, bytes]]:
        for row in rows:
            path = self.folder / self.names[row]
            try:
                yield str(path), path.read_bytes()
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error}") from error


def decode(
    name: str, content: bytes | np.ndarray, channels: int, size: tuple[int, int] | None = None
) -> np.ndarray:
    """An image file's pixels, (height, width, channels) in uint8.

    Grey images become coloured ones, or the other way round, where ``channels`` asks for it.

    Args:
      content: the file's bytes, or the pixels of an image to resize.
      size: height and width to resize to, bilinearly with antialiasing and whatever the aspect
        ratio; None to keep the size.

    Raises:
      DataError: if it cannot be decoded; ``name`` says which.
    """
    try:
        if isinstance(content, bytes):
            image = Image.open(io.BytesIO(content)).convert(_MODES[channels])
        else:
            image = Image.fromarray(content[..., 0] if channels == 1 else content)
    except Exception as error:  # Pillow raises all kinds on broken files
        raise DataError(
            f"{name} cannot be decoded as an image: {error}. Replace or remove it."
        ) from error
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, channels)


def mean_and_std(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Of each channel, (channels,) in float32; the standard deviation is at least 1e-3."""
    channels = images.shape[-1]
    counts = np.zeros((channels, 256))
    for start in range(0, len(images), _CHUNK):
        pixels = images[start : start + _CHUNK].reshape(-1, channels)
        counts += [np.bincount(channel, minlength=256) for channel in pixels.T]
    levels, share = np.arange(256), counts / counts.sum(1, keepdims=True)
    mean = share @ levels
    variance = np.sum(share * (levels - mean[:, None]) ** 2, 1)
    return mean.astype(np.float32), np.maximum(np.sqrt(variance), 1e-3).astype(np.float32)


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
