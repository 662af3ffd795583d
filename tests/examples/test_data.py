"""The data of the examples: loading, label noise, batches, and errors that come at once."""

import contextlib
import gzip
import io
import itertools
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import time
import zipfile

import hypothesis
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import strategies as st
from PIL import Image

from examples.classification.data import builders, images, noise, pipeline
from examples.classification.data import sets as data


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def write_idx_folder(folder, seed):
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, size in (("train", 40), ("t10k", 20)):
        arrays[split] = (
            rng.integers(0, 256, (size, 28, 28), dtype=np.uint8),
            np.arange(size, dtype=np.uint8) % 10,
        )
        write_idx(folder / f"{split}-images-idx3-ubyte.gz", arrays[split][0])
        write_idx(folder / f"{split}-labels-idx1-ubyte.gz", arrays[split][1])
    return arrays


def test_digits_has_a_fixed_stratified_split(data_dir):
    first, again = (data.load("digits", data_dir=data_dir) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert (a is None) == (b is None)
        np.testing.assert_array_equal(a, b)
    assert first.train_images.shape == (1000, 8, 8, 1)
    assert first.test_images.shape == (797, 8, 8, 1)
    assert first.train_images.dtype == np.uint8
    assert first.train_labels.dtype == np.int32
    train_counts, test_counts = np.bincount(first.train_labels), np.bincount(first.test_labels)
    np.testing.assert_allclose(train_counts / 1000, test_counts / 797, atol=2e-3)
    images = np.concatenate([first.train_images, first.test_images]).reshape(1797, -1)
    assert len(np.unique(images, axis=0)) == 1797  # nothing is in both parts


def test_another_process_may_prepare_the_data_at_the_same_time(tmp_path, monkeypatch):
    generate = builders.Digits._generate_examples

    def generate_second(*args):
        if not calls:
            calls.append(args)
            data.load("digits", data_dir=tmp_path)
        return generate(*args)

    calls = []
    monkeypatch.setattr(builders.Digits, "_generate_examples", generate_second)
    assert data.load("digits", data_dir=tmp_path).train_images.shape == (1000, 8, 8, 1)
    assert calls


def test_statistics_are_those_of_the_training_images(data_dir):
    dataset = data.load("digits", data_dir=data_dir, validation=0.25)
    normalized = (dataset.train_images - dataset.mean) / dataset.std
    np.testing.assert_allclose([normalized.mean(), normalized.std()], [0, 1], atol=1e-5)


def test_validation_is_held_out_of_the_training_set(data_dir):
    whole = data.load("digits", data_dir=data_dir)
    part = data.load("digits", data_dir=data_dir, validation=0.25)
    assert len(part.train_images) == 750
    held_out = {image.tobytes() for image in part.validation_images}
    assert len(held_out) == 250
    assert held_out <= {image.tobytes() for image in whole.train_images}
    assert not held_out & {image.tobytes() for image in part.train_images}
    np.testing.assert_array_equal(part.test_images, whole.test_images)
    assert part.evaluation[0] is part.validation_images
    assert whole.evaluation[0] is whole.test_images


def test_an_impossible_validation_share_is_an_error(data_dir):
    with pytest.raises(data.DataError, match="validation share"):
        data.load("digits", data_dir=data_dir, validation=0.001)


def test_fashion_mnist_is_read_from_idx_files(tmp_path):
    arrays = write_idx_folder(tmp_path, seed=0)
    dataset = data.load("fashion_mnist", data_dir=tmp_path / "prepared", data_files=tmp_path)
    for pixels, labels, expected in (
        (dataset.train_images, dataset.train_labels, arrays["train"]),
        (dataset.test_images, dataset.test_labels, arrays["t10k"]),
    ):
        got = {(image.tobytes(), label) for image, label in zip(pixels, labels, strict=True)}
        assert got == {(i.tobytes(), label) for i, label in zip(*expected, strict=True)}


def test_other_idx_files_are_prepared_apart(tmp_path):
    for seed in (0, 1):
        write_idx_folder(tmp_path, seed)
        dataset = data.load("fashion_mnist", data_dir=tmp_path / "prepared", data_files=tmp_path)
        expected = builders.read_idx(tmp_path / "t10k-images-idx3-ubyte.gz")
        assert dataset.test_images.sum() == expected.sum()


def test_missing_idx_files_say_how_to_get_them(tmp_path):
    with pytest.raises(data.DataError, match=r"lacks train-images.*apt install.*--data-files"):
        data.load("fashion_mnist", data_files=tmp_path)


def idx(array, sizes=None):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *(sizes or array.shape))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"hello world"), "is not an idx file"),
        (b"hello world", "cannot be decompressed"),
        (gzip.compress(idx(np.zeros(40)) + bytes(40))[:-12], "cannot be decompressed"),
        (gzip.compress(idx(np.zeros(40)) + bytes(39)), r"should hold \(40,\) values, but has 39"),
        (gzip.compress(idx(np.zeros(39)) + bytes(39)), "40 images, but .* do not belong together"),
        (
            gzip.compress(idx(np.zeros(40)) + bytes(39) + b"\x0a"),
            "label 10; the classes are 0 to 9",
        ),
    ],
    ids=["magic", "plain", "cut", "short", "fewer_labels", "label_10"],
)
def test_broken_idx_files_are_errors_that_name_them(content, message, tmp_path):
    write_idx_folder(tmp_path, seed=0)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(content)
    with pytest.raises(data.DataError, match=message) as error:
        data.load("fashion_mnist", data_dir=tmp_path / "prepared", data_files=tmp_path)
    assert "train-labels-idx1-ubyte.gz" in str(error.value)


class Killed(BaseException):
    """Ends a program like Ctrl-C, past every handler of errors."""


def test_an_interrupted_preparation_is_not_taken_for_a_whole_one(tmp_path, monkeypatch):
    examples = builders._examples

    def interrupted(*arrays):
        yield from itertools.islice(examples(*arrays), 100)
        raise Killed

    with monkeypatch.context() as context:
        context.setattr(builders, "_examples", interrupted)
        with pytest.raises(Killed):
            data.load("digits", data_dir=tmp_path)
    assert len(data.load("digits", data_dir=tmp_path).train_images) == 1000


def test_a_killed_preparation_is_not_taken_for_a_whole_one(tmp_path):
    program = """
import os, pathlib, sys
from examples.classification.data import builders, sets as data

def killed(split, images, labels):
    yield from list(examples(split, images, labels))[:100]
    os._exit(9)

examples, builders._examples = builders._examples, killed
data.load("digits", data_dir=pathlib.Path(sys.argv[1]))
"""
    process = subprocess.run([sys.executable, "-c", program, tmp_path])
    assert process.returncode == 9
    assert list(tmp_path.rglob("*incomplete*"))
    assert len(data.load("digits", data_dir=tmp_path).train_images) == 1000


def test_prepared_data_that_is_cut_short_is_an_error(tmp_path):
    data.load("digits", data_dir=tmp_path)
    (file,) = tmp_path.rglob("*train*array_record*")
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(data.DataError, match=r"digits/1.*cannot be read.*Delete that folder"):
        data.load("digits", data_dir=tmp_path)


def test_training_examples_are_a_fixed_part_with_equal_shares(data_dir):
    whole = data.load("digits", data_dir=data_dir)
    parts = [data.load("digits", data_dir=data_dir, train_examples=n) for n in (10, 300, 1000)]
    for part, size in zip(parts, (10, 300, 1000), strict=True):
        assert len(part.train_images) == len(part.train_labels) == len(part.train_index) == size
        shares = np.bincount(part.train_labels) / size
        np.testing.assert_allclose(shares, np.bincount(whole.train_labels) / 1000, atol=1 / size)
        np.testing.assert_array_equal(part.test_images, whole.test_images)
        assert part.num_original == 1000
    assert {*parts[0].train_index} < {*parts[1].train_index} < {*whole.train_index}
    with_validation = data.load("digits", data_dir=data_dir, validation=0.25, train_examples=300)
    held_out = data.load("digits", data_dir=data_dir, validation=0.25)
    np.testing.assert_array_equal(with_validation.validation_images, held_out.validation_images)
    assert {*with_validation.train_index} < {*held_out.train_index}


@pytest.mark.parametrize("size", [9, 1001])
def test_an_impossible_number_of_training_examples_is_an_error(size, data_dir):
    with pytest.raises(data.DataError, match=f"{size} training examples are impossible"):
        data.load("digits", data_dir=data_dir, train_examples=size)


def test_images_are_resized(data_dir):
    small = data.load("digits", data_dir=data_dir, image_size=4)
    whole = data.load("digits", data_dir=data_dir)
    assert small.train_images.shape == (1000, 4, 4, 1)
    distance = np.arange(8) + 0.5 - 2 * np.arange(4)[:, None] - 1
    weights = np.maximum(0, 1 - abs(distance) / 2)  # bilinear and antialiased: twice as wide
    weights /= weights.sum(1, keepdims=True)
    expected = np.einsum("ab,nbcd,ec->naed", weights, whole.train_images, weights)
    np.testing.assert_allclose(small.train_images, expected, atol=1)


def test_records_read_what_is_otherwise_in_memory(data_dir):
    whole = data.load("digits", data_dir=data_dir, validation=0.2, train_examples=500)
    records = data.load(
        "digits", data_dir=data_dir, validation=0.2, train_examples=500, in_memory=False
    )
    assert isinstance(records.train_images, images.Records)
    for name in ("train", "validation", "test"):
        expected = getattr(whole, f"{name}_images")
        got = pickle.loads(pickle.dumps(getattr(records, f"{name}_images")))
        assert got.shape == expected.shape
        assert len(got) == len(expected)
        np.testing.assert_array_equal(got[:], expected)
        np.testing.assert_array_equal(got[[3, 0, 3]], expected[[3, 0, 3]])
        np.testing.assert_array_equal(got[5:20], expected[5:20])
    for name in ("mean", "std", "train_labels", "validation_labels", "train_index"):
        np.testing.assert_array_equal(getattr(records, name), getattr(whole, name))


def jpeg(seed, size=(64, 64), mode="RGB"):
    """A file's bytes, and what they decode to."""
    rng = np.random.default_rng(seed)
    shape = (*size[::-1], 3) if mode == "RGB" else size[::-1]
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def pixels(content, size=None):
    image = Image.open(io.BytesIO(content)).convert("RGB")
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR) if size else image)


WNIDS = [f"n{i:08d}" for i in range(200)][::-1]  # not sorted, as in the original


def write_cifar(folder, name, *, num_labels, train, drop=0):
    """Its archive, with ten images a file of which image i has label i; returns the pixels."""
    file, _, *files = builders.CIFAR_FILES[name]
    rng, pixels = np.random.default_rng(0), []
    with tarfile.open(folder / file, "w:gz") as archive:
        for member in (*files[0], *files[1]):
            records = rng.integers(0, 256, (10, num_labels + 3072), dtype=np.uint8)
            records[:, num_labels - 1] = np.arange(10)
            pixels.append(records[:, num_labels:])
            content = records.tobytes()[: records.size - drop]
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return np.concatenate(pixels[:train]), pixels[-1]


@pytest.mark.parametrize(("name", "num_labels", "train"), [("cifar10", 1, 5), ("cifar100", 2, 1)])
def test_cifar_is_read_from_its_binary_version(name, num_labels, train, tmp_path):
    pixels, _ = write_cifar(tmp_path, name, num_labels=num_labels, train=train)
    dataset = data.load(name, data_dir=tmp_path / "prepared", data_files=tmp_path)
    assert dataset.num_classes == (10 if name == "cifar10" else 100)
    assert len(dataset.test_images) == 10
    np.testing.assert_array_equal(np.sort(dataset.train_index), np.arange(10 * train))
    np.testing.assert_array_equal(dataset.train_labels, dataset.train_index % 10)
    planes = dataset.train_images.transpose(0, 3, 1, 2).reshape(10 * train, 3072)
    np.testing.assert_array_equal(planes, pixels[dataset.train_index])


def test_a_faulty_cifar_is_an_error_that_says_where(tmp_path):
    with pytest.raises(data.DataError, match=r"no .*cifar-10-binary.tar.gz. Download it from www"):
        data.load("cifar10", data_dir=tmp_path, data_files=tmp_path)
    write_cifar(tmp_path, "cifar10", num_labels=1, train=5, drop=7)
    file = tmp_path / "cifar-10-binary.tar.gz"
    with pytest.raises(
        data.DataError, match=r"data_batch_1.bin in .* is no whole number of images"
    ):
        data.load("cifar10", data_dir=tmp_path, data_files=file)
    with pytest.raises(
        data.DataError, match=r"lacks cifar-100-binary/train.bin. Is it of cifar100"
    ):
        data.load("cifar100", data_dir=tmp_path, data_files=file)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(data.DataError, match=r"is damaged: .*data_batch_1.bin cannot be read"):
        data.load("cifar10", data_dir=tmp_path, data_files=file)


def tiny_imagenet_files():
    """Two training and one test image of each of two classes, and one of the others."""
    files = {"wnids.txt": "\n".join(WNIDS).encode()}
    for label, wnid in enumerate(WNIDS):
        for i in (10, 9) if label < 2 else (0,):
            mode = "L" if label == 1 else "RGB"
            name = f"train/{wnid}/images/{wnid}_{i}.JPEG"
            files[name] = jpeg(10 * label + i, mode=mode)
    annotations = [f"val_{i}.JPEG\t{WNIDS[i]}\t0\t0\t63\t63" for i in range(2)]
    files["val/val_annotations.txt"] = "\n".join(annotations).encode()
    for i in range(2):
        files[f"val/images/val_{i}.JPEG"] = jpeg(5000 + i)
    return files


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)


def test_tiny_imagenet_is_read_from_its_zip_file(tmp_path):
    files = tiny_imagenet_files()
    write_zip(tmp_path / "tiny-imagenet-200.zip", files)
    dataset = data.load("tiny_imagenet", data_dir=tmp_path, data_files=tmp_path)
    assert dataset.train_images.shape == (202, 64, 64, 3)
    assert dataset.num_classes == 200
    order = np.argsort(dataset.train_index)
    expected = [
        pixels(files[f"train/{wnid}/images/{wnid}_{i}.JPEG"])
        for label, wnid in enumerate(WNIDS)
        for i in ((9, 10) if label < 2 else (0,))
    ]
    np.testing.assert_array_equal(dataset.train_images[order], expected)
    np.testing.assert_array_equal(dataset.train_labels[order], [0, 0, 1, 1, *range(2, 200)])
    for image, label in zip(dataset.test_images, dataset.test_labels, strict=True):
        np.testing.assert_array_equal(image, pixels(files[f"val/images/val_{label}.JPEG"]))
    file = tmp_path / "tiny-imagenet-200.zip"
    again = data.load("tiny_imagenet", data_dir=tmp_path, data_files=file, in_memory=False)
    file.unlink()  # who reads the prepared data needs it no more
    read = pickle.loads(pickle.dumps(again.train_images))
    np.testing.assert_array_equal(read[:], dataset.train_images)


def without(name):
    def change(files):
        del files[name]

    return change


def with_file(name, content):
    return lambda files: files.update({name: content})


IMAGE = f"train/{WNIDS[3]}/images/{WNIDS[3]}_0.JPEG"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("wnids.txt"), r"lacks wnids\.txt"),
        (without("val/val_annotations.txt"), r"lacks val/val_annotations\.txt"),
        (without("val/images/val_1.JPEG"), r"lacks val/images/val_1\.JPEG"),
        (
            without(f"train/{WNIDS[3]}/images/{WNIDS[3]}_0.JPEG"),
            f"no training images of {WNIDS[3]}",
        ),
        (
            with_file("val/val_annotations.txt", b"val_0.JPEG\tn99999999\t0\t0\t1\t1"),
            r"unknown class in val/val_annotations\.txt: 'val_0.JPEG\\tn9",
        ),
        (with_file(IMAGE, jpeg(30)[:300]), f"{WNIDS[3]}_0.JPEG in .*cannot be decoded"),
    ],
)
def test_a_faulty_tiny_imagenet_is_an_error_that_says_where(change, message, tmp_path):
    files = tiny_imagenet_files()
    change(files)
    write_zip(tmp_path / "tiny-imagenet-200.zip", files)
    with pytest.raises(data.DataError, match=message) as error:
        data.load("tiny_imagenet", data_dir=tmp_path, data_files=tmp_path)
    assert "tiny-imagenet-200.zip" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-200], "opened as a zip"),
        (lambda content: b"<html>not found</html>", "opened as a zip"),
        (lambda content: content.replace(jpeg(30)[300:310], b"0123456789"), "is damaged: train/"),
    ],
)
def test_a_damaged_zip_file_is_an_error_that_names_it(change, message, tmp_path):
    file = tmp_path / "tiny.zip"
    write_zip(file, tiny_imagenet_files())
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(data.DataError, match=rf"tiny\.zip.*{message}.*Download it again"):
        data.load("tiny_imagenet", data_dir=tmp_path, data_files=file)


def test_files_that_do_not_exist_are_errors_that_say_what_to_do(tmp_path):
    with pytest.raises(data.DataError, match=r"no tiny-imagenet-200\.zip\. Download.*--data-files"):
        data.load("tiny_imagenet", data_dir=tmp_path)
    for name in ("tiny_imagenet", "image_folder", "fashion_mnist"):
        with pytest.raises(data.DataError, match=r"nowhere.*--data-files"):
            data.load(name, data_dir=tmp_path, data_files=tmp_path / "nowhere")
    with pytest.raises(data.DataError, match="image_folder needs --data-files"):
        data.load("image_folder")


def write_image_folder(folder, size=lambda i: (12, 10), test="test"):
    """Twenty training and six test images of two classes, in no order. Returns their bytes."""
    files = {}
    for part, count in (("train", 20), (test, 6)):
        for i in range(count):
            name = f"{part}/{'dog' if i % 2 else 'cat'}/{i:02d}.{'jpeg' if i % 3 else 'JPG'}"
            files[name] = jpeg(i + 100 * (part == test), size(i), mode="RGB" if i % 5 else "L")
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "train/cat/notes.txt").write_text("not an image")
    (folder / "train/cat/._00.JPG").write_text("of a file system")
    return files


@pytest.mark.parametrize("test", ["test", "val", "validation"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_an_image_folder_is_read_in_the_order_of_its_names(test, in_memory, tmp_path):
    files = write_image_folder(tmp_path, test=test)
    dataset = data.load("image_folder", data_files=tmp_path, in_memory=in_memory)
    assert dataset.num_classes == 2
    for part, got, labels in (
        ("train", dataset.train_images, dataset.train_labels),
        (test, dataset.test_images, dataset.test_labels),
    ):
        names = sorted(name for name in files if name.startswith(f"{part}/"))
        np.testing.assert_array_equal(got[:], [pixels(files[name]) for name in names])
        np.testing.assert_array_equal(labels, ["/dog/" in name for name in names])
    np.testing.assert_array_equal(dataset.train_index, np.arange(20))


def test_images_of_different_sizes_need_a_size(tmp_path):
    files = write_image_folder(tmp_path, size=lambda i: (12 + i, 10))
    with pytest.raises(data.DataError, match=r"02\.jpeg has 10×14×3.*others 10×12.*--image-size"):
        data.load("image_folder", data_files=tmp_path)
    dataset = data.load("image_folder", data_files=tmp_path, image_size=8)
    names = sorted(name for name in files if name.startswith("train/"))
    expected = [pixels(files[name], (8, 8)) for name in names]
    np.testing.assert_array_equal(dataset.train_images, expected)


def empty(folder):
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "train").rename(folder / "Train"), "needs the folder train"),
        (lambda folder: (folder / "test").rename(folder / "t"), "one of test, val, validation"),
        (lambda folder: empty(folder / "train/dog"), "train/dog has no images"),
        (lambda folder: empty(folder / "test/cat"), "test/cat has no images"),
        (lambda folder: shutil.rmtree(folder / "train/dog"), "train has one class only, cat"),
        (lambda folder: (folder / "test/fox").mkdir(), "classes that .*train lacks: fox"),
        (
            lambda folder: (folder / "train/dog/01.jpeg").write_bytes(jpeg(1)[:400]),
            r"train/dog/01\.jpeg cannot be decoded.*Replace or remove it",
        ),
        (
            lambda folder: (folder / "test/cat/00.JPG").write_text("hello"),
            r"test/cat/00\.JPG cannot be decoded",
        ),
    ],
)
def test_a_faulty_image_folder_is_an_error_that_says_where(change, message, tmp_path):
    write_image_folder(tmp_path)
    change(tmp_path)
    with pytest.raises(data.DataError, match=message):
        data.load("image_folder", data_files=tmp_path)


class MockSource(list):
    """What ``as_data_source`` returns, as far as it is used."""

    def __getitems__(self, keys):
        return [self[key] for key in keys]


def mock_as_data_source(self, split, **kwargs):
    features = self.info.features
    rng = np.random.default_rng(split == "test")
    is_secret = self.name == "imagenet2012" and split == "test"
    return MockSource(
        {
            "image": rng.integers(
                *(0, 256, [size or 7 + i for size in features["image"].shape]), dtype=np.uint8
            ),
            "label": -1 if is_secret else i % features["label"].num_classes,
        }
        | ({"id": f"{split}_{7 * i % 16:05}".encode()} if "id" in features else {})
        for i in range(16)
    )


@pytest.fixture
def mock_tfds(monkeypatch):
    """Every data set of tensorflow-datasets has 16 random images in each of three splits."""
    monkeypatch.setattr(data, "is_reachable", lambda url: True)
    splits = dict.fromkeys(("train", "validation", "test"))
    monkeypatch.setattr(tfds.core.DatasetInfo, "splits", splits)
    with tfds.testing.mock_data(as_data_source_fn=mock_as_data_source):
        yield


def test_a_data_set_of_tensorflow_datasets_is_loaded_by_name(tmp_path, mock_tfds):
    dataset = data.load("cifar10", data_dir=tmp_path)
    assert dataset.train_images.shape == dataset.test_images.shape == (16, 32, 32, 3)
    assert dataset.num_classes == 10
    assert dataset.mean.shape == dataset.std.shape == (3,)
    np.testing.assert_array_equal(dataset.train_index, 7 * np.arange(16) % 16)


def test_a_test_set_without_labels_gives_way_to_the_validation_set(tmp_path, mock_tfds):
    dataset = data.load("imagenet2012", data_dir=tmp_path, image_size=8)
    assert dataset.train_images.shape == (16, 8, 8, 3)
    np.testing.assert_array_equal(dataset.test_labels, np.arange(16))


@pytest.mark.parametrize(
    ("name", "message"),
    [("tf_flowers", "differ in size"), ("ag_news_subset", "not an image-classification")],
)
def test_data_sets_of_another_kind_are_errors(name, message, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "is_reachable", lambda url: True)
    with tfds.testing.mock_data(num_examples=1), pytest.raises(data.DataError, match=message):
        data.load(name, data_dir=tmp_path)


@pytest.mark.parametrize("load", [data.load, data.generated])
def test_an_unknown_name_gets_near_matches(load):
    with pytest.raises(data.DataError, match=r"'cifra10'.*Did you mean cifar10"):
        load("cifra10")


@pytest.mark.parametrize(
    ("name", "shape", "num_classes"),
    [
        ("digits", (8, 8, 1), 10),
        ("fashion_mnist", (28, 28, 1), 10),
        ("tiny_imagenet", (64, 64, 3), 200),
        ("image_folder", (64, 64, 3), 10),
        ("cifar10", (32, 32, 3), 10),
        ("cifar100", (32, 32, 3), 100),
    ],
)
def test_generated_data_needs_no_data(name, shape, num_classes, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    start = time.perf_counter()
    dataset = data.generated(name, num_examples=32)
    small = data.generated(name, num_examples=32, image_size=6)
    assert time.perf_counter() - start < 2
    assert dataset.train_images.shape == dataset.test_images.shape == (32, *shape)
    assert small.train_images.shape == (32, 6, 6, shape[-1])
    assert dataset.train_images.dtype == np.uint8
    assert dataset.num_classes == num_classes
    assert dataset.train_labels.max() < num_classes
    assert dataset.mean.shape == shape[-1:]


def refuse(*args, **kwargs):
    raise OSError("no network")


def hang(*args, **kwargs):
    time.sleep(3)
    refuse()


@pytest.mark.parametrize("getaddrinfo", [hang, refuse])
def test_offline_is_found_out_at_once(getaddrinfo, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(data, "_TIMEOUT", 0.2)
    start = time.perf_counter()
    with pytest.raises(data.DataError, match=r"cs\.toronto\.edu cannot be reached.*--data-dir"):
        data.load("cifar10", data_dir=tmp_path)
    assert time.perf_counter() - start < 2.5


def test_a_server_that_answers_is_reachable(monkeypatch):
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert data.is_reachable(f"http://127.0.0.1:{port}/file")
    assert not data.is_reachable(f"http://127.0.0.1:{port}/file")


def labelled(name, labels, num_classes):
    """A data set with these training labels."""
    labels = np.asarray(labels, np.int32)
    dataset = data.generated("digits", num_examples=len(labels))
    return dataset._replace(name=name, train_labels=labels, num_classes=num_classes)


def transitions(labels, noisy, num_classes):
    """The share of each class's labels that became each other one."""
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (labels, noisy), 1)
    return counts / counts.sum(1, keepdims=True)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 0.8])
def test_symmetric_noise_has_its_rate_and_spreads_evenly(rate):
    dataset = labelled("digits", np.repeat(np.arange(10), 4000), 10)
    noisy = noise.training_labels(dataset, "symmetric", rate, seed=3)
    assert noisy.dtype == np.int32
    expected = np.full((10, 10), rate / 9)
    np.fill_diagonal(expected, 1 - rate)
    tolerance = 5 * np.sqrt(0.25 / 4000)
    got = transitions(dataset.train_labels, noisy, 10)
    np.testing.assert_allclose(got, expected, atol=tolerance)
    assert abs(np.mean(noisy != dataset.train_labels) - rate) < tolerance


def test_symmetric_noise_draws_what_it_always_drew():
    dataset = labelled("digits", np.arange(20) % 10, 10)
    noisy = noise.training_labels(dataset, "symmetric", 0.5, seed=3)
    np.testing.assert_array_equal(
        noisy, [2, 6, 6, 7, 4, 5, 1, 7, 8, 9, 0, 5, 8, 3, 8, 0, 6, 7, 1, 3]
    )


@pytest.mark.parametrize(
    ("name", "num_classes", "expected"),
    [
        ("cifar10", 10, [0, 1, 0, 5, 7, 3, 6, 7, 8, 1]),
        ("fashion_mnist", 10, [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]),
        ("image_folder", 3, [1, 2, 0]),
    ],
)
def test_asymmetric_noise_takes_a_class_for_one_other(name, num_classes, expected):
    dataset = labelled(name, np.repeat(np.arange(num_classes), 4000), num_classes)
    noisy = noise.training_labels(dataset, "asymmetric", 0.3, seed=3)
    assert noisy.dtype == np.int32
    rates = 0.7 * np.eye(num_classes) + 0.3 * np.eye(num_classes)[expected]
    got = transitions(dataset.train_labels, noisy, num_classes)
    np.testing.assert_allclose(got, rates, atol=5 * np.sqrt(0.25 / 4000))


def test_classes_of_cifar100_are_taken_for_the_next_of_their_superclass():
    coarse = np.array(  # the data set's own coarse label of each class
        [
            *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11),
            *(6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5),
            *(5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17),
            *(10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13),
            *(16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
        ]
    )
    classes = noise.mistaken_for("cifar100", 100)
    np.testing.assert_array_equal(coarse[classes], coarse)
    for superclass in range(20):
        members = np.flatnonzero(coarse == superclass)
        np.testing.assert_array_equal(classes[members], np.roll(members, -1))


def test_an_unknown_noise_says_what_there_is(data_dir):
    dataset = data.load("digits", data_dir=data_dir)
    with pytest.raises(data.DataError, match="'symetric': it is symmetric, asymmetric, or a file"):
        noise.training_labels(dataset, "symetric", 0.1, seed=0)


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_given_labels_are_matched_with_the_original_order(suffix, data_dir, tmp_path):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    originals, _, labels, _ = train_test_split(
        *load_digits(return_X_y=True),
        train_size=1000,
        stratify=load_digits().target,
        random_state=0,
    )
    given, file = (labels + np.arange(1000)) % 10, tmp_path / f"labels{suffix}"
    if suffix == ".npy":
        np.save(file, given)
    else:
        np.savetxt(file, given, fmt="%d")
    for options in ({}, {"validation": 0.2}, {"train_examples": 100}):
        dataset = data.load("digits", data_dir=data_dir, **options)
        np.testing.assert_array_equal(
            dataset.train_images.reshape(-1, 64), originals[dataset.train_index]
        )
        got = noise.training_labels(dataset, file, 0, seed=0)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, (dataset.train_labels + dataset.train_index) % 10)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1\n" * 999, r"shape \(999,\), but the whole training set of digits has 1,000"),
        ("10\n" * 1000, r"from 10 to 10; the classes of digits are 0 to 9"),
        ("-1\n" * 1000, r"from -1 to -1"),
        ("1.5\n" * 1000, r"cannot be read as labels.*'1\.5'"),
        ("cat\n" * 1000, r"cannot be read as labels.*'cat'"),
        (b"\xff\xfe", "cannot be read as labels"),
        ("", r"shape \(0,\)"),
    ],
)
def test_given_labels_that_do_not_fit_are_errors(content, message, data_dir, tmp_path):
    file = tmp_path / "labels.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    dataset = data.load("digits", data_dir=data_dir)
    with pytest.raises(data.DataError, match=message):
        noise.training_labels(dataset, file, 0, seed=0)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(1000), "holds float64, not integers"),
        (np.zeros((1000, 2), int), r"shape \(1000, 2\)"),
        (np.array({"worse_label": np.zeros(1000, int)}), "of several in one file, save the one"),
    ],
)
def test_arrays_that_are_no_labels_are_errors(array, message, data_dir, tmp_path):
    np.save(tmp_path / "labels.npy", array, allow_pickle=True)
    dataset = data.load("digits", data_dir=data_dir)
    with pytest.raises(data.DataError, match=message):
        noise.training_labels(dataset, tmp_path / "labels.npy", 0, seed=0)


def test_given_labels_with_a_rate_are_an_error(data_dir, tmp_path):
    file = tmp_path / "labels.txt"
    file.write_text("1\n" * 1000)
    with pytest.raises(data.DataError, match=r"a rate of 0\.4 is for made noise"):
        noise.training_labels(data.load("digits", data_dir=data_dir), file, 0.4, seed=0)


def test_given_labels_need_a_data_set_that_tells_its_order(tmp_path, mock_tfds):
    file = tmp_path / "labels.txt"
    file.write_text("1\n" * 16)
    dataset = data.load("mnist", data_dir=tmp_path)
    assert dataset.train_index is None
    with pytest.raises(data.DataError, match="does not tell the original one"):
        noise.training_labels(dataset, file, 0, seed=0)


def test_noise_and_order_are_functions_of_the_seed():
    dataset = labelled("digits", np.zeros(1000), 10)
    for kind in noise.NOISES:
        first, again, other = (
            noise.training_labels(dataset, kind, 0.5, seed) for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()

    def order(seed, epoch):
        return data.epoch_order(1000, seed, epoch)

    np.testing.assert_array_equal(order(1, 5), order(1, 5))
    np.testing.assert_array_equal(np.sort(order(1, 5)), np.arange(1000))
    assert (order(1, 5) != order(1, 6)).any()
    assert (order(1, 5) != order(2, 5)).any()


def test_an_epoch_has_every_example_but_those_of_an_incomplete_batch():
    order = pipeline.Order(103, 10, seed=1)
    assert order.steps_per_epoch == 10
    for epoch in (0, 3):
        index = np.concatenate([order(10 * epoch + step) for step in range(10)])
        np.testing.assert_array_equal(index, data.epoch_order(103, 1, epoch)[:100])


def test_processes_share_each_batch():
    whole = pipeline.Order(100, 12, seed=1)
    parts = [whole._replace(own=slice(4 * i, 4 * (i + 1))) for i in range(3)]
    for step in (0, 7, 8, 30):
        np.testing.assert_array_equal(np.concatenate([p(step) for p in parts]), whole(step))


@hypothesis.given(
    num_examples=st.integers(1, 60),
    batch_size=st.integers(1, 60),
    start=st.integers(0, 40),
    length=st.integers(0, 40),
)
@hypothesis.settings(deadline=None)
def test_batches_from_any_step_are_the_tail_of_the_whole(num_examples, batch_size, start, length):
    hypothesis.assume(batch_size <= num_examples)
    pixels = np.arange(num_examples, dtype=np.uint8).reshape(-1, 1, 1, 1)
    order = pipeline.Order(num_examples, batch_size, seed=0)
    whole = list(pipeline.batches(pixels, order, 0, start + length))
    tail = list(pipeline.batches(pixels, order, start, start + length))
    assert len(whole) == start + length
    assert_same_batches(tail, whole[start:])
    for index, batch in whole:
        np.testing.assert_array_equal(batch, pixels[index])


def assert_same_batches(batches, expected):
    for got, want in zip(batches, expected, strict=True):
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype


@pytest.mark.parametrize("name", ["digits", "image_folder"])
def test_worker_processes_read_the_same_batches(name, data_dir, tmp_path):
    write_image_folder(tmp_path)
    dataset = data.load(name, data_dir=data_dir, data_files=tmp_path, in_memory=False)
    order = pipeline.Order(len(dataset.train_images), 6, seed=1)
    expected = list(pipeline.batches(dataset.train_images, order, 4, 13))
    got = pipeline.batches(dataset.train_images, order, 4, 13, num_workers=2)
    assert_same_batches(got, expected)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_cannot_be_read_is_an_error_that_names_it(num_workers, tmp_path):
    write_image_folder(tmp_path)
    dataset = data.load("image_folder", data_files=tmp_path, in_memory=False)
    file = tmp_path / "train/dog/07.jpeg"
    for change, message in (
        (lambda: file.write_bytes(jpeg(7)[:500]), r"train/dog/07\.jpeg cannot be decoded"),
        (file.unlink, r"train/dog/07\.jpeg cannot be read"),
    )[num_workers:]:
        change()
        batches = pipeline.batches(
            dataset.train_images, pipeline.Order(20, 20, seed=0), 0, 1, num_workers
        )
        with pytest.raises(data.DataError, match=message):
            next(batches)


def test_closing_the_batches_ends_the_workers_and_a_killed_worker_is_an_error():
    order = pipeline.Order(10, 2, seed=0)
    pixels = np.zeros((10, 1, 1, 1), np.uint8)
    with contextlib.closing(pipeline.batches(pixels, order, 0, 10**6, num_workers=2)) as batches:
        next(batches)
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()
    batches = pipeline.batches(pixels, order, 0, 10**6, num_workers=1)
    next(batches)
    multiprocessing.active_children()[0].kill()
    with pytest.raises(data.DataError, match="process that reads images failed"):
        for _ in batches:
            pass
    assert not multiprocessing.active_children()


_PROGRAM = """
import contextlib, multiprocessing, sys, time
import numpy as np
from examples.classification.data import pipeline

assert __name__ == "__main__", "a worker process imports the program"

def examples(step):
    assert "flax" not in sys.modules
    return np.array([step % 2])

batches = pipeline.batches(np.zeros((2, 1, 1, 1), np.uint8), examples, 0, 10**9, num_workers=2)
with contextlib.closing(batches):
    next(batches)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    for _ in batches:
        time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_program_and_start_no_device(number, tmp_path):
    (tmp_path / "program.py").write_text(_PROGRAM)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "program.py"],
        env=os.environ | {"PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "no_such_device"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers = list(map(int, process.stdout.readline().split()))
    assert len(workers) == 2
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: to all of them
    else:
        process.kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -number
    assert number != signal.SIGINT or errors.count("Traceback") == 1  # the program's alone
    deadline = time.perf_counter() + 20
    while any(map(is_alive, workers)) and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, workers))


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
