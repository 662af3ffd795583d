"""What networks train and are tested on: scenes, VOC's and SBD's files, random crops."""

import shutil
import types

import numpy as np
import pytest
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


def test_scenes_are_the_same_for_the_same_arguments(items):
    images, labels = arrays(scenes(FASHION, "train", 20, items))
    assert images.shape == (20, SIZE, SIZE, 3)
    assert labels.shape == (20, SIZE, SIZE)
    assert images.dtype == labels.dtype == np.uint8
    again = arrays(scenes(FASHION, "train", 20, items))
    assert np.array_equal(images, again[0])
    assert np.array_equal(labels, again[1])
    assert not np.array_equal(images, arrays(scenes(FASHION, "train", 20, items, seed=1))[0])


def test_the_splits_share_no_items(items):
    expected = {"train": {1, 4}, "validation": {2, 3}, "test": {5}}  # see the files
    for split, classes in expected.items():
        _, labels = arrays(scenes(FASHION, split, 30, items))
        assert {*np.unique(labels).tolist()} == {0, IGNORED} | classes


def test_digits_need_no_files_and_are_never_mirrored(tmp_path, monkeypatch):
    lopsided = np.zeros((1000, 8, 8, 1), np.uint8)
    lopsided[:, :, :4] = 16
    own = lopsided, np.arange(1000) % 10
    monkeypatch.setattr("examples.segmentation.scenes.digits", lambda split: own)
    _, labels = arrays(scenes("digits", "train", 60, tmp_path, seed=1))
    assert {*np.unique(labels).tolist()} == {*range(CLASSES["digits"]), IGNORED}
    assert labels[:, :, :40].any()
    assert not labels[:, :, 40:].any()  # where only a mirrored left half can be


def test_the_splits_share_no_parts_of_photos(items, monkeypatch):
    photo = np.zeros((427, 640, 3), np.uint8)
    photo[..., 0], photo[..., 1] = np.divmod(np.arange(640), 256)  # shows its columns
    photos = types.SimpleNamespace(images=[photo, photo])
    monkeypatch.setattr("examples.segmentation.scenes.load_sample_images", lambda: photos)

    def columns(split):
        images, labels = arrays(scenes(FASHION, split, 60, items))
        shown = images[labels == 0].astype(int)
        return {*np.unique(256 * shown[:, 0] + shown[:, 1]).tolist()}

    train, validation, test = (columns(split) for split in ("train", "validation", "test"))
    assert min(map(len, (train, validation, test))) > 100
    assert max(train) < min(validation) <= max(validation) < min(test)


def test_noise_gives_whole_items_another_class(items):
    clean, noisy = (
        scenes(FASHION, "train", 300, items),
        scenes(FASHION, "train", 300, items, noise=0.4),
    )
    (images, labels), (same_images, given) = arrays(clean), arrays(noisy)
    assert np.array_equal(images, same_images)
    assert {*np.unique(given).tolist()} == {*range(CLASSES[FASHION]), IGNORED}
    is_item = (labels != 0) & (labels != IGNORED) & (given != IGNORED)
    wrong = np.mean(labels[is_item] != given[is_item])
    assert abs(wrong - 0.4) < 0.05


def test_rims_between_labels_are_ignored(items):
    _, labels = arrays(scenes(FASHION, "test", 10, items))
    for a, b in ((labels[:, :, :-1], labels[:, :, 1:]), (labels[:, :-1], labels[:, 1:])):
        meet = (a != b) & (a != IGNORED) & (b != IGNORED)
        assert not meet.any()
    assert (labels == IGNORED).mean() < 0.1


def read(some, names, name):
    return some.read(names.index(name))


def test_voc_trains_on_its_train_list_and_is_tested_on_val(archives):
    voc, _ = archives
    train, test = data.voc(voc, None, validation=False)
    assert (train.size, test.size) == (len(TRAIN), len(VAL))
    for some, names in ((train, TRAIN), (test, VAL)):
        for place, name in enumerate(names):
            image, labels = some.read(place)
            assert np.array_equal(labels, labels_of(name))
            assert image.shape == (*labels.shape, 3)
            assert image.dtype == labels.dtype == np.uint8


def test_sbd_adds_what_is_not_in_val_and_vocs_labels_stay(archives):
    voc, sbd = archives
    train, test = data.voc(voc, sbd, validation=False)
    names = sorted({*TRAIN, *SBD} - {*VAL})
    assert train.size == len(names) == 5
    assert test.size == len(VAL)
    for name in names:
        expected = labels_of(name) if name in TRAIN else labels_of(name, shift=1)
        assert np.array_equal(read(train, names, name)[1], expected)
    assert np.array_equal(test.read(1)[1], labels_of(VAL[1]))


def test_validation_takes_scenes_from_training(archives):
    voc, sbd = archives
    names = sorted({*TRAIN, *SBD} - {*VAL})
    train, held_out = data.voc(voc, sbd, validation=True)
    assert (train.size, held_out.size) == (4, 1)
    assert np.array_equal(held_out.read(0)[1], labels_of(names[0]))
    assert np.array_equal(train.read(0)[1], labels_of(names[1]))


def remove(voc, sbd):
    (voc / "JPEGImages" / f"{TRAIN[1]}.jpg").unlink()


def remove_list(voc, sbd):
    (voc / "ImageSets" / "Segmentation" / "val.txt").unlink()


def empty_list(voc, sbd):
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_text("\n")


def remove_labels(voc, sbd):
    shutil.rmtree(sbd / "cls")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove, r"these files are missing: .*2008_000008\.jpg"),
        (remove_list, r"val\.txt cannot be read: .* --data is the folder VOC2012"),
        (empty_list, r"train\.txt names no images"),
        (remove_labels, r"cls has no \.mat files. --sbd is the folder"),
    ],
)
def test_a_missing_file_is_an_error_at_once(change, message, archives):
    change(*archives)
    with pytest.raises(DataError, match=message):
        data.voc(*archives, validation=False)


def test_a_damaged_file_is_an_error_that_names_it(archives):
    voc, sbd = archives
    train, _ = data.voc(voc, sbd, validation=False)
    names = sorted({*TRAIN, *SBD} - {*VAL})
    for file, name in (
        (voc / "JPEGImages" / f"{TRAIN[0]}.jpg", TRAIN[0]),
        (voc / "SegmentationClass" / f"{TRAIN[0]}.png", TRAIN[0]),
        (sbd / "cls" / f"{SBD[2]}.mat", SBD[2]),
    ):
        content = file.read_bytes()
        for length in (0, 60, 130, 190, len(content) // 2, len(content) - 30):
            file.write_bytes(content[:length])
            with pytest.raises(DataError, match=f"{file} cannot be read: .* Unpack it again"):
                read(train, names, name)
        file.write_bytes(content)
        read(train, names, name)


def test_labels_that_are_no_classes_are_an_error(archives):
    voc, _ = archives
    train, _ = data.voc(voc, None, validation=False)
    file = voc / "SegmentationClass" / f"{TRAIN[0]}.png"
    labels = labels_of(TRAIN[0])
    write_mask(file, np.where(labels == IGNORED, 21, labels).astype(np.uint8))
    with pytest.raises(DataError, match="neither 0 to 20 nor 255"):
        train.read(0)
    write_mask(file, labels[:-1])
    with pytest.raises(DataError, match=r"has \(40, 52\) pixels, but .* \(39, 52\)"):
        train.read(0)
    with Image.open(voc / "JPEGImages" / f"{TRAIN[0]}.jpg") as image:
        image.save(file)
    with pytest.raises(DataError, match="no PNG with a palette, but of mode RGB"):
        train.read(0)


def numbered(height, width):
    """A scene whose labels are in its pixels, too, (label, row, column)."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    labels = ((rows + columns) % 20).astype(np.uint8)
    image = np.stack([labels, rows, columns], -1)
    return Scenes(1, lambda scene: (image, labels))


INDEX = np.zeros(200, np.int64)


def test_crops_keep_pixels_with_their_labels():
    some = numbered(12, 9)
    crops = data.batch(some, INDEX, 6, (1, 1), np.random.default_rng(0))
    assert crops.images.shape == (200, 6, 6, 3)
    assert np.array_equal(crops.images[..., 0], crops.labels)
    rows, columns = crops.images[..., 1].astype(int), crops.images[..., 2].astype(int)
    assert np.all(np.diff(rows, axis=1) == 1)
    steps = np.diff(columns, axis=2)
    is_mirrored = np.all(steps == -1, axis=(1, 2))
    assert np.array_equal(is_mirrored, ~np.all(steps == 1, axis=(1, 2)))
    assert 70 < is_mirrored.sum() < 130
    assert {*rows[:, 0, 0].tolist()} == {*range(7)}
    assert {*columns.min((1, 2)).tolist()} == {*range(4)}


def test_what_has_no_mirror_image_is_not_mirrored():
    some = numbered(12, 9)._replace(may_be_mirrored=False)
    crops = data.batch(some, INDEX, 6, (1, 1), np.random.default_rng(0))
    assert np.all(np.diff(crops.images[..., 2].astype(int), axis=2) == 1)


def test_what_is_beside_the_image_is_ignored_and_of_the_mean_color():
    crops = data.batch(numbered(4, 5), INDEX, 8, (1, 1), np.random.default_rng(0))
    beside = crops.labels == IGNORED
    assert np.all(beside.sum((1, 2)) == 64 - 20)
    assert np.all(crops.images[beside] == np.round(data.MEAN))
    assert np.array_equal(crops.images[..., 0][~beside], crops.labels[~beside])


def test_images_are_scaled_with_their_labels():
    labels = np.array([[0, 255], [3, 4]], np.uint8).repeat(16, 0).repeat(16, 1)
    image = np.stack([labels] * 3, -1)
    some = Scenes(1, lambda scene: (image, labels))
    crops = data.batch(some, INDEX, 64, (0.5, 2), np.random.default_rng(0))
    inside = np.all(crops.images != np.round(data.MEAN), axis=-1)
    heights = inside.any(2).sum(1)
    assert heights.min() < 20
    assert heights.max() > 60
    # Interpolated pixels are beside the edges alone; the labels are not interpolated at all.
    assert {*np.unique(crops.labels).tolist()} == {0, 3, 4, 255}
    same = crops.images[..., 0] == crops.labels
    assert np.mean(same[inside]) > 0.85
    assert np.all(heights > 15)


def test_a_batch_is_a_function_of_examples_seed_and_step():
    some = numbered(12, 9)

    def crops(seed, step, index=INDEX):
        rng = augmentation_rng(seed, step)
        return data.batch(some, index, 6, (0.5, 2), rng)

    first, again = crops(0, 5), crops(0, 5)
    assert np.array_equal(first.images, again.images)
    assert np.array_equal(first.labels, again.labels)
    for other in (crops(1, 5), crops(0, 6)):
        assert not np.array_equal(first.labels, other.labels)
    assert first.index.dtype == np.int32
