"""Small files of the real formats: Fashion-MNIST, VOC 2012 and SBD."""

import gzip

import numpy as np
import pytest
import scipy.io
from PIL import Image

from examples.segmentation.evaluation import PALETTE


def write_idx(path, array):
    sizes = np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes(), 1))


@pytest.fixture(scope="session")
def items(tmp_path_factory):
    """Fashion-MNIST's files, with squares for items.

    Those for training are tops and shoes, those for validation trousers and dresses, those for
    testing bags: where an item is from shows in its label.
    """
    folder = tmp_path_factory.mktemp("items")
    kinds = {"train": [0, 5] * 50 + [1, 3] * 5_000, "t10k": [8] * 20}
    for name, own in kinds.items():
        images = np.zeros((len(own), 28, 28), np.uint8)
        images[:, 4:24, 4:24] = 200
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", np.array(own, np.uint8))
    return folder


TRAIN, VAL = ("2007_000032", "2008_000008", "2009_000001"), ("2007_000033", "2008_000002")
SBD = ("2008_000008", "2008_000002", "2010_000003", "2011_000004")  # one of each list, two of none
SIZE = (40, 52)


def labels_of(name, shift=0):
    """Quarters of several classes, and an ignored frame."""
    seed = sum(map(ord, name)) + shift
    quarters = np.random.default_rng(seed).integers(0, 21, (2, 2)).astype(np.uint8)
    labels = quarters.repeat(SIZE[0] // 2, 0).repeat(SIZE[1] // 2, 1)
    if not shift:
        labels[0] = labels[:, 0] = 255
    return labels


def write_mask(path, labels):
    mask = Image.fromarray(labels).convert("L")
    mask.putpalette(PALETTE.tobytes())  # of mode P from here on
    mask.save(path)


@pytest.fixture
def archives(tmp_path):
    """VOC2012 and SBD's ``dataset``, the labels of the latter other than VOC's."""
    voc, sbd = tmp_path / "VOC2012", tmp_path / "dataset"
    for folder in (
        *(voc / "JPEGImages", voc / "SegmentationClass", voc / "ImageSets" / "Segmentation"),
        sbd / "cls",
    ):
        folder.mkdir(parents=True)
    for split, names in (("train", TRAIN), ("val", VAL)):
        file = voc / "ImageSets" / "Segmentation" / f"{split}.txt"
        file.write_text("".join(f"{name}\n" for name in names))
    for name in {*TRAIN, *VAL, *SBD}:
        image = PALETTE[labels_of(name)]
        Image.fromarray(image).save(voc / "JPEGImages" / f"{name}.jpg", quality=95)
    for name in (*TRAIN, *VAL):
        write_mask(voc / "SegmentationClass" / f"{name}.png", labels_of(name))
    for name in SBD:
        content = {"Segmentation": labels_of(name, shift=1), "CategoriesPresent": np.arange(3)}
        scipy.io.savemat(sbd / "cls" / f"{name}.mat", {"GTcls": content}, do_compression=True)
    return voc, sbd
