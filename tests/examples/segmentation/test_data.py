"""Generated scenes, VOC's and SBD's files, and random crops."""

import types

import numpy as np
import pytest
import scipy.io
from PIL import Image

from examples.common.errors import DataError
from examples.common.pipeline import augmentation_rng
from examples.segmentation import data
from examples.segmentation.data import IGNORED, Scenes
from examples.segmentation.scenes import CLASSES, SIZE, scenes
from tests.examples.segmentation.conftest import SBD, TRAIN, VAL, labels_of, write_mask

FASHION = "fashion_mnist"


def arrays(some):
    images, labels = zip(*map(some.read, range(some.size)), strict=True)
    return np.stack(images), np.stack(labels)


def test_scenes_are_reproducible_and_ignore_rims(items):
    images, labels = arrays(scenes(FASHION, "train", 20, items))
    again = arrays(scenes(FASHION, "train", 20, items))
    assert np.array_equal(images, again[0])
    assert np.array_equal(labels, again[1])
    assert not np.array_equal(images, arrays(scenes(FASHION, "train", 20, items, seed=1))[0])
    assert images.shape == (20, SIZE, SIZE, 3)
    assert images.dtype == labels.dtype == np.uint8
    for a, b in ((labels[:, :, :-1], labels[:, :, 1:]), (labels[:, :-1], labels[:, 1:])):
        assert not ((a != b) & (a != IGNORED) & (b != IGNORED)).any()
    assert (labels == IGNORED).mean() < 0.1


def test_splits_share_neither_items_nor_parts_of_photos(items, monkeypatch):
    photo = np.zeros((427, 640, 3), np.uint8)
    photo[..., 0], photo[..., 1] = np.divmod(np.arange(640), 256)  # the number of the column
    photos = types.SimpleNamespace(images=[photo, photo])
    monkeypatch.setattr("examples.segmentation.scenes.load_sample_images", lambda: photos)
    columns = {}
    for split, classes in {"train": {1, 4}, "validation": {2, 3}, "test": {5}}.items():
        images, labels = arrays(scenes(FASHION, split, 60, items))
        assert {*np.unique(labels).tolist()} == {0, IGNORED} | classes  # see the fixture
        shown = images[labels == 0].astype(int)
        columns[split] = {*np.unique(256 * shown[:, 0] + shown[:, 1]).tolist()}
        assert len(columns[split]) > 100
    assert max(columns["train"]) < min(columns["validation"])
    assert max(columns["validation"]) < min(columns["test"])


def test_digits_are_never_mirrored(tmp_path, monkeypatch):
    left = np.zeros((1000, 8, 8, 1), np.uint8)
    left[:, :, :4] = 16
    own = left, np.arange(1000) % 10
    monkeypatch.setattr("examples.segmentation.scenes.digits", lambda split: own)
    some = scenes("digits", "train", 60, tmp_path, seed=1)
    assert not some.may_be_mirrored
    _, labels = arrays(some)
    assert {*np.unique(labels).tolist()} == {*range(CLASSES["digits"]), IGNORED}
    assert labels[:, :, :40].any()
    assert not labels[:, :, 40:].any()  # where only a mirrored left half can be


def test_noise_gives_whole_items_another_class(items):
    images, labels = arrays(scenes(FASHION, "train", 300, items))
    same_images, given = arrays(scenes(FASHION, "train", 300, items, noise=0.4))
    assert np.array_equal(images, same_images)
    is_item = (labels != 0) & (labels != IGNORED) & (given != IGNORED)
    assert abs(np.mean(labels[is_item] != given[is_item]) - 0.4) < 0.05


def test_voc_and_sbd_are_split_by_lists(archives):
    voc, sbd = archives
    names = sorted({*TRAIN, *SBD} - {*VAL})
    for own_sbd, validation, train_names, test_names in (
        (None, False, TRAIN, VAL),
        (sbd, False, names, VAL),
        (sbd, True, names[1:], names[:1]),
    ):
        parts = data.voc(voc, own_sbd, validation=validation)
        for some, own_names in zip(parts, (train_names, test_names), strict=True):
            assert some.size == len(own_names)
            for place, name in enumerate(own_names):
                image, labels = some.read(place)
                shift = 0 if name in (*TRAIN, *VAL) else 1  # VOC's labels take precedence
                assert np.array_equal(labels, labels_of(name, shift))
                assert image.shape == (*labels.shape, 3)
                assert image.dtype == labels.dtype == np.uint8


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (f"JPEGImages/{TRAIN[1]}.jpg", None, r"files are missing: .*2008_000008\.jpg"),
        ("ImageSets/Segmentation/val.txt", None, r"val\.txt cannot .* --data is the folder VOC"),
        ("ImageSets/Segmentation/val.txt", b"\xff", r"val\.txt cannot .*UnicodeDecodeError"),
        ("ImageSets/Segmentation/train.txt", b"\n", r"train\.txt names no images"),
        ("../dataset/cls", None, r"cls has no \.mat files. --sbd is the folder"),
    ],
)
def test_missing_files_are_an_error_at_once(file, content, message, archives):
    path = archives[0] / file
    if content is None:
        path.rename(path.with_name("elsewhere"))
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        data.voc(*archives, validation=False)


def test_damaged_files_are_an_error_that_names_them(archives, monkeypatch):
    voc, sbd = archives
    train, _ = data.voc(voc, sbd, validation=False)
    names = sorted({*TRAIN, *SBD} - {*VAL})
    image, mask = voc / "JPEGImages" / f"{TRAIN[0]}.jpg", f"SegmentationClass/{TRAIN[0]}.png"
    mat = sbd / "cls" / f"{SBD[2]}.mat"
    for file, name in ((image, TRAIN[0]), (voc / mask, TRAIN[0]), (mat, SBD[2])):
        content = file.read_bytes()
        for length in (0, 60, 130, 190, len(content) // 2, len(content) - 30):
            file.write_bytes(content[:length])
            with pytest.raises(DataError, match=f"{file} cannot be read as .* Unpack it again"):
                train.read(names.index(name))
        file.write_bytes(content)
        train.read(names.index(name))
    for content in (
        {"GTcls": np.zeros(3)},
        {"GTcls": {"Segmentation": labels_of(SBD[2]) - 300.5}},
        {"GTcls": {"Segmentation": np.zeros((2, 2, 2))}},
    ):
        scipy.io.savemat(mat, content)
        with pytest.raises(DataError, match=rf"{SBD[2]}\.mat"):
            train.read(names.index(SBD[2]))
    mat.write_bytes(bytes(2**20 + 1))
    with pytest.raises(DataError, match=rf"{SBD[2]}\.mat declares 1,048,577 bytes"):
        train.read(names.index(SBD[2]))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # of a decompression bomb
    with pytest.raises(DataError, match=r"DecompressionBombError"):
        train.read(names.index(TRAIN[0]))


def test_labels_that_do_not_fit_are_an_error(archives):
    voc, _ = archives
    train, _ = data.voc(voc, None, validation=False)
    file, labels = voc / "SegmentationClass" / f"{TRAIN[0]}.png", labels_of(TRAIN[0])
    write_mask(file, np.where(labels == IGNORED, 21, labels).astype(np.uint8))
    with pytest.raises(DataError, match="neither 0 to 20 nor 255"):
        train.read(0)
    write_mask(file, labels[:-1])
    with pytest.raises(DataError, match=r"has \(40, 52\) pixels, but .* \(39, 52\)"):
        train.read(0)
    Image.fromarray(labels).convert("RGB").save(file)
    with pytest.raises(DataError, match="not a PNG with a palette, but of mode RGB"):
        train.read(0)


INDEX = np.zeros(200, np.int64)


def crops_of(height, width, crop, scale=(1, 1), rng=None, **changes):
    """Crops of a scene whose pixels have the label, the row and the column in their channels."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    labels = ((rows + columns) % 20).astype(np.uint8)
    some = Scenes(1, lambda scene: (np.stack([labels, rows, columns], -1), labels))
    rng = rng or np.random.default_rng(0)
    return data.batch(some._replace(**changes), INDEX, crop, scale, rng)


def test_crops_keep_pixels_with_their_labels():
    crops = crops_of(12, 9, crop=6)
    assert crops.images.shape == (200, 6, 6, 3)
    assert np.array_equal(crops.images[..., 0], crops.labels)
    rows, columns = crops.images[..., 1].astype(int), crops.images[..., 2].astype(int)
    assert np.all(np.diff(rows, axis=1) == 1)
    is_mirrored = np.all(np.diff(columns, axis=2) == -1, axis=(1, 2))
    assert np.array_equal(is_mirrored, ~np.all(np.diff(columns, axis=2) == 1, axis=(1, 2)))
    assert 70 < is_mirrored.sum() < 130
    assert {*rows[:, 0, 0].tolist()} == {*range(7)}
    assert {*columns.min((1, 2)).tolist()} == {*range(4)}
    unmirrored = crops_of(12, 9, crop=6, may_be_mirrored=False)
    assert np.all(np.diff(unmirrored.images[..., 2].astype(int), axis=2) == 1)


def test_pixels_outside_the_image_are_ignored_and_of_the_mean_color():
    crops = crops_of(4, 5, crop=8)
    outside = crops.labels == IGNORED
    assert np.all(outside.sum((1, 2)) == 64 - 20)
    assert np.all(crops.images[outside] == np.round(data.MEAN))
    assert np.array_equal(crops.images[..., 0][~outside], crops.labels[~outside])


def test_images_are_scaled_with_their_labels():
    labels = np.array([[0, 255], [3, 4]], np.uint8).repeat(16, 0).repeat(16, 1)
    some = Scenes(1, lambda scene: (np.stack([labels] * 3, -1), labels))
    crops = data.batch(some, INDEX, 64, (0.5, 2), np.random.default_rng(0))
    inside = np.all(crops.images != np.round(data.MEAN), axis=-1)
    heights = inside.any(2).sum(1)
    assert 15 < heights.min() < 20
    assert heights.max() > 60
    # Only pixels at edges are interpolated, and labels never are.
    assert {*np.unique(crops.labels).tolist()} == {0, 3, 4, 255}
    assert np.mean((crops.images[..., 0] == crops.labels)[inside]) > 0.85


def test_a_batch_is_a_function_of_seed_and_step():
    first, *others = (
        crops_of(12, 9, crop=6, scale=(0.5, 2), rng=augmentation_rng(seed, step))
        for seed, step in ((0, 5), (0, 5), (1, 5), (0, 6))
    )
    assert [np.array_equal(first.labels, other.labels) for other in others] == [True, False, False]
    assert np.array_equal(first.images, others[0].images)
    assert first.index.dtype == np.int32
