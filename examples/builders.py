"""tensorflow-datasets builders of ours: no download, no TensorFlow."""

import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts its files."""

_IDX_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


class Digits(tfds.core.GeneratorBasedBuilder):
    """scikit-learn's 1,797 handwritten digits, 8×8 pixels of 17 grey levels.

    They come without a split. Ours is fixed: 1,000 for training and 797 for testing, drawn once
    with the classes in equal shares (``train_test_split(..., stratify=labels, random_state=0)``).
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return _image_classification_info(self, (8, 8, 1))

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        pixels, labels = load_digits(return_X_y=True)
        images = pixels.astype(np.uint8).reshape(-1, 8, 8, 1)
        train_images, test_images, train_labels, test_labels = train_test_split(
            images, labels, train_size=1000, stratify=labels, random_state=0
        )
        return {
            "train": self._generate_examples(train_images, train_labels),
            "test": self._generate_examples(test_images, test_labels),
        }

    def _generate_examples(self, images, labels):
        yield from _examples(images, labels)


class FashionMnistFiles(tfds.core.GeneratorBasedBuilder):
    """Fashion-MNIST from its four idx.gz files: 60,000 and 10,000 images of 28×28 pixels.

    The configuration is named after the files' content, so that other files of this format
    (KMNIST's have the same names) are prepared apart.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, folder: Path = FASHION_MNIST_FOLDER, **kwargs):
        self._folder = Path(folder)
        missing = [f for files in _IDX_FILES.values() for f in files if not self._path(f).exists()]
        if missing:
            raise FileNotFoundError(
                f"{self._folder} lacks {', '.join(missing)}. Debian and Ubuntu have them in the"
                " package dataset-fashion-mnist (apt install dataset-fashion-mnist); elsewhere,"
                " download the four files named in github.com/zalandoresearch/fashion-mnist and"
                " pass their folder as --data-files."
            )
        digest = hashlib.sha256()
        for file in sorted(f for files in _IDX_FILES.values() for f in files):
            digest.update(self._path(file).read_bytes())
        config = tfds.core.BuilderConfig(name=f"sha256-{digest.hexdigest()[:16]}")
        super().__init__(config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return _image_classification_info(self, (28, 28, 1))

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(*(read_idx(self._path(file)) for file in files))
            for split, files in _IDX_FILES.items()
        }

    def _generate_examples(self, images, labels):
        yield from _examples(images[..., None], labels)

    def _path(self, file: str) -> Path:
        return self._folder / file


def read_idx(path: Path) -> np.ndarray:
    """Reads a gzipped idx file of unsigned bytes: 0, 0, 8, rank, big-endian sizes, data."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an idx file of unsigned bytes.")
    rank = content[3]
    shape = np.frombuffer(content, ">u4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _image_classification_info(builder, shape: tuple[int, ...]) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=builder,
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Tensor(shape=shape, dtype=np.uint8),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        ),
        supervised_keys=("image", "label"),
    )


def _examples(images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict]]:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield i, {"image": image, "label": int(label)}
