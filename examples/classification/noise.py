"""Label noise: generated, symmetric or asymmetric, or given in a file, such as CIFAR-10N's."""

from pathlib import Path

import numpy as np

from examples.classification.images import Dataset
from examples.common.errors import DataError
from examples.common.image_sets import add_symmetric_noise, noise_rng
from examples.common.reading import DAMAGE

NOISES = ("symmetric", "asymmetric")

_CIFAR10 = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
"""Truck → automobile, bird → airplane, deer → horse, cat ↔ dog."""

_CIFAR100 = (  # the superclasses; the label of a class is its place in the alphabetical order
    "beaver dolphin otter seal whale",
    "aquarium_fish flatfish ray shark trout",
    "orchid poppy rose sunflower tulip",
    "bottle bowl can cup plate",
    "apple mushroom orange pear sweet_pepper",
    "clock keyboard lamp telephone television",
    "bed chair couch table wardrobe",
    "bee beetle butterfly caterpillar cockroach",
    "bear leopard lion tiger wolf",
    "bridge castle house road skyscraper",
    "cloud forest mountain plain sea",
    "camel cattle chimpanzee elephant kangaroo",
    "fox porcupine possum raccoon skunk",
    "crab lobster snail spider worm",
    "baby boy girl man woman",
    "crocodile dinosaur lizard snake turtle",
    "hamster mouse rabbit shrew squirrel",
    "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "bicycle bus motorcycle pickup_truck train",
    "lawn_mower rocket streetcar tank tractor",
)


def training_labels(dataset: Dataset, noise: str, rate: float, seed: int) -> np.ndarray:
    """The labels to train with, (n,) in int32.

    Args:
      noise: ``symmetric``: see ``image_sets.add_symmetric_noise``. ``asymmetric``: with
        probability ``rate`` a label becomes the one class of ``mistaken_for``. Otherwise a file of
        labels, .npy or text with one integer per line, for each example of the whole training set
        in its original order, as CIFAR-10N has them.
      rate: the share of the labels to change, in [0, 1); 0 for a file.
      seed: the seed of the random numbers. Labels in a file do not depend on it.

    Raises:
      DataError: for a file that cannot be read or does not fit.
    """
    labels, num_classes = dataset.train_labels, dataset.num_classes
    if noise == "symmetric":
        return add_symmetric_noise(labels, rate, num_classes, noise_rng(seed))
    if noise == "asymmetric":
        is_flipped = noise_rng(seed).random(len(labels)) < rate
        return np.where(is_flipped, mistaken_for(dataset.name, num_classes)[labels], labels)
    return _given_labels(Path(noise), dataset)


def mistaken_for(name: str, num_classes: int) -> np.ndarray:
    """The class that each class is mistaken for, (num_classes,) in int32.

    On CIFAR-10 truck → automobile, bird → airplane, deer → horse and cat ↔ dog, and on CIFAR-100
    the next class of the superclass, circularly (Patrini et al., arXiv 1609.03683). On every other
    data set the next class, circularly, the "pair flipping" of Co-teaching (arXiv 1804.06872).
    """
    classes = np.arange(num_classes, dtype=np.int32)
    if name == "cifar10":
        classes[list(_CIFAR10)] = list(_CIFAR10.values())
        return classes
    if name == "cifar100":
        label = {word: i for i, word in enumerate(sorted(" ".join(_CIFAR100).split()))}
        for superclass in _CIFAR100:
            members = [label[word] for word in superclass.split()]
            classes[members] = np.roll(members, -1)
        return classes
    return np.roll(classes, -1)


def _given_labels(path: Path, dataset: Dataset) -> np.ndarray:
    if dataset.train_index is None:
        raise DataError(
            f"The labels of {path} cannot be matched with {dataset.name}, since its prepared form"
            " does not contain the original order. Use the original archive with --data-files."
        )
    given = _read_labels(path)
    if given.shape != (dataset.num_original,):
        raise DataError(
            f"{path} holds labels of the shape {given.shape}, but the whole training set of"
            f" {dataset.name} has {dataset.num_original:,} examples; each needs one."
        )
    if given.min() < 0 or given.max() >= dataset.num_classes:
        raise DataError(
            f"{path} has labels from {given.min()} to {given.max()}; the classes of {dataset.name}"
            f" are 0 to {dataset.num_classes - 1}."
        )
    return given[dataset.train_index].astype(np.int32)


def _read_labels(path: Path) -> np.ndarray:
    try:
        if path.suffix == ".npy":
            labels = np.load(path, allow_pickle=False)
        else:
            lines = path.read_text().splitlines()
            labels = np.array([int(line) for line in lines], np.int64)
    except DAMAGE as error:
        raise DataError(
            f"{path} cannot be read as labels: {error}. It must be text with one integer a line, or"
            " a .npy file of one array of integers (if the file has several, save the one to use)."
        ) from error
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{path} holds {labels.dtype}, not integers.")
    return labels
