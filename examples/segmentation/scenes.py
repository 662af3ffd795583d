"""Generated scenes: tinted digits or clothes that occlude each other, on crops of photos."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from examples.common.image_sets import add_symmetric_noise, digits, fashion_mnist
from examples.segmentation.data import IGNORED, Scenes

SIZE = 48
ITEMS = ("digits", "fashion_mnist")
CLASSES = {"digits": 6, "fashion_mnist": 6}  # including the background, class 0
_CLASS_OF_GARMENT = np.array([1, 2, 1, 3, 1, 4, 1, 4, 5, 4], np.uint8)
_VALIDATION_ITEMS = {"digits": 100, "fashion_mnist": 10_000}  # the last ones of the training set
_SIDES = (20, 32)  # of an item in pixels
_MOST_ITEMS = 3
_OPAQUE = {"digits": 64, "fashion_mnist": 24}  # Pixels of an item are at least this bright.
_STREAMS = {"train": 4, "validation": 5, "test": 6}
_COLUMNS = {"train": (0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1)}  # of the photos


def scenes(
    kind: str, split: str, count: int, folder: Path, *, noise: float = 0.0, seed: int = 0
) -> Scenes:
    """Generate scenes of 48 × 48 pixels. The same arguments give the same scenes.

    A scene has one to three items, which may occlude each other, on a crop of one of scikit-learn's
    two photos. An item is 20 to 32 pixels wide and has a random color and a class that is drawn
    uniformly. Pixels whose right or lower neighbor has another label are ignored, like the contours
    in VOC.

    Args:
      kind: The kind of items: ``"digits"``, scikit-learn's 0 to 4, or ``"fashion_mnist"`` in the
        five classes tops, trousers, dresses, shoes and bags, half of them mirrored.
      split: ``"train"``, ``"validation"`` or ``"test"``. They share no items or parts of photos.
      count: The number of scenes.
      folder: The folder of Fashion-MNIST's files.
      noise: The share of items whose pixels are all labelled as another class.
      seed: The seed of everything random.

    Raises:
      DataError: If Fashion-MNIST cannot be read.
    """
    items, classes = _read_items(kind, split, folder)
    rng = np.random.default_rng((seed, _STREAMS[split]))
    shares = 1 / np.bincount(classes)[classes]
    chosen = rng.choice(len(items), (count, _MOST_ITEMS), p=shares / shares.sum())
    given = 1 + add_symmetric_noise(classes[chosen.ravel()] - 1, noise, CLASSES[kind] - 1, rng)
    given = given.reshape(chosen.shape)
    photos = [
        photo[:, slice(*(round(share * photo.shape[1]) for share in _COLUMNS[split]))]
        for photo in load_sample_images().images
    ]
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    labels = np.zeros((count, SIZE, SIZE), np.uint8)
    for image, label, its_items, its_classes in zip(images, labels, chosen, given, strict=True):
        photo = photos[rng.integers(len(photos))]
        y, x = (rng.integers(n - SIZE + 1) for n in photo.shape[:2])
        image[:] = photo[y : y + SIZE, x : x + SIZE]
        for place in range(rng.integers(1, _MOST_ITEMS + 1)):
            _put(image, label, items[its_items[place]], its_classes[place], kind, rng)
        _ignore_rims(label)
    return Scenes(count, lambda scene: (images[scene], labels[scene]), kind != "digits")


def _read_items(kind: str, split: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read images (n, height, width) of 0 to 255 and classes (n,) from 1 on, both uint8."""
    source = "test" if split == "test" else "train"
    if kind == "digits":
        images, labels = digits(source)
        chosen = labels < CLASSES["digits"] - 1
        images = (images[chosen] * 15.9375).astype(np.uint8)
        classes = (labels[chosen] + 1).astype(np.uint8)
    else:
        images, labels = fashion_mnist(source, folder)
        classes = _CLASS_OF_GARMENT[labels]
    last = _VALIDATION_ITEMS[kind]
    part = {"train": slice(None, -last), "validation": slice(-last, None), "test": slice(None)}
    return images[part[split], ..., 0], classes[part[split]]


def _put(image, label, item, item_class, kind, rng) -> None:
    side = rng.integers(_SIDES[0], _SIDES[1] + 1)
    item = np.asarray(Image.fromarray(item).resize((side, side), Image.Resampling.BILINEAR))
    is_mirrored = rng.random() < 0.5 and kind == "fashion_mnist"
    item = item[:, ::-1] if is_mirrored else item
    color = rng.uniform(0.3, 1, 3)
    y, x = rng.integers(SIZE - side + 1, size=2)
    place, is_item = np.s_[y : y + side, x : x + side], item >= _OPAQUE[kind]
    image[place][is_item] = (item[is_item][:, None] * color).astype(np.uint8)
    label[place][is_item] = item_class


def _ignore_rims(label: np.ndarray) -> None:
    is_rim = np.zeros(label.shape, bool)
    is_rim[:, :-1] |= label[:, :-1] != label[:, 1:]
    is_rim[:-1] |= label[:-1] != label[1:]
    label[is_rim] = IGNORED
