"""The data of the example: loading, and errors that come at once."""

import gzip
import io
import itertools
import multiprocessing
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import time
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from examples.classification.data import builders, datasets, images, noise
from examples.common import image_sets, pipeline
from examples.common.errors import DataError
from tests.examples.common.test_pipeline import assert_same_batches


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
    first, again = (datasets.load("digits", data_dir=data_dir) for _ in range(2))
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
            datasets.load("digits", data_dir=tmp_path)
        return generate(*args)

    calls = []
    monkeypatch.setattr(builders.Digits, "_generate_examples", generate_second)
    assert datasets.load("digits", data_dir=tmp_path).train_images.shape == (1000, 8, 8, 1)
    assert calls


def test_statistics_are_those_of_the_training_images(data_dir):
    dataset = datasets.load("digits", data_dir=data_dir, validation=0.25)
    normalized = (dataset.train_images - dataset.mean) / dataset.std
    np.testing.assert_allclose([normalized.mean(), normalized.std()], [0, 1], atol=1e-5)


def test_validation_is_held_out_of_the_training_set(data_dir):
    whole = datasets.load("digits", data_dir=data_dir)
    part = datasets.load("digits", data_dir=data_dir, validation=0.25)
    assert len(part.train_images) == 750
    held_out = {image.tobytes() for image in part.validation_images}
    assert len(held_out) == 250
    assert held_out <= {image.tobytes() for image in whole.train_images}
    assert not held_out & {image.tobytes() for image in part.train_images}
    np.testing.assert_array_equal(part.test_images, whole.test_images)
    assert part.evaluation[0] is part.validation_images
    assert whole.evaluation[0] is whole.test_images


def test_an_impossible_validation_share_is_an_error(data_dir):
    with pytest.raises(DataError, match="validation share"):
        datasets.load("digits", data_dir=data_dir, validation=0.001)


def test_fashion_mnist_is_read_from_idx_files(tmp_path):
    arrays = write_idx_folder(tmp_path, seed=0)
    dataset = datasets.load("fashion_mnist", data_dir=tmp_path / "prepared", data_files=tmp_path)
    for pixels, labels, expected in (
        (dataset.train_images, dataset.train_labels, arrays["train"]),
        (dataset.test_images, dataset.test_labels, arrays["t10k"]),
    ):
        got = {(image.tobytes(), label) for image, label in zip(pixels, labels, strict=True)}
        assert got == {(i.tobytes(), label) for i, label in zip(*expected, strict=True)}


def test_other_idx_files_are_prepared_apart(tmp_path):
    for seed in (0, 1):
        write_idx_folder(tmp_path, seed)
        dataset = datasets.load(
            "fashion_mnist", data_dir=tmp_path / "prepared", data_files=tmp_path
        )
        expected = image_sets.read_idx(tmp_path / "t10k-images-idx3-ubyte.gz")
        assert dataset.test_images.sum() == expected.sum()


def test_missing_idx_files_say_how_to_get_them(tmp_path):
    with pytest.raises(DataError, match=r"lacks train-images.*apt install.*--data-files"):
        datasets.load("fashion_mnist", data_files=tmp_path)


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
    with pytest.raises(DataError, match=message) as error:
        datasets.load("fashion_mnist", data_dir=tmp_path / "prepared", data_files=tmp_path)
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
            datasets.load("digits", data_dir=tmp_path)
    assert len(datasets.load("digits", data_dir=tmp_path).train_images) == 1000


def test_a_killed_preparation_is_not_taken_for_a_whole_one(tmp_path):
    program = """
import os, pathlib, sys
from examples.classification.data import builders, datasets

def killed(split, images, labels):
    yield from list(examples(split, images, labels))[:100]
    os._exit(9)

examples, builders._examples = builders._examples, killed
datasets.load("digits", data_dir=pathlib.Path(sys.argv[1]))
"""
    process = subprocess.run([sys.executable, "-c", program, tmp_path])
    assert process.returncode == 9
    assert list(tmp_path.rglob("*incomplete*"))
    assert len(datasets.load("digits", data_dir=tmp_path).train_images) == 1000


def test_prepared_data_that_is_cut_short_is_an_error(tmp_path):
    datasets.load("digits", data_dir=tmp_path)
    (file,) = tmp_path.rglob("*train*array_record*")
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"digits/1.*cannot be read.*Delete that folder"):
        datasets.load("digits", data_dir=tmp_path)


def test_training_examples_are_a_fixed_part_with_equal_shares(data_dir):
    whole = datasets.load("digits", data_dir=data_dir)
    parts = [datasets.load("digits", data_dir=data_dir, train_examples=n) for n in (10, 300, 1000)]
    for part, size in zip(parts, (10, 300, 1000), strict=True):
        assert len(part.train_images) == len(part.train_labels) == len(part.train_index) == size
        shares = np.bincount(part.train_labels) / size
        np.testing.assert_allclose(shares, np.bincount(whole.train_labels) / 1000, atol=1 / size)
        np.testing.assert_array_equal(part.test_images, whole.test_images)
        assert part.num_original == 1000
    assert {*parts[0].train_index} < {*parts[1].train_index} < {*whole.train_index}
    with_validation = datasets.load(
        "digits", data_dir=data_dir, validation=0.25, train_examples=300
    )
    held_out = datasets.load("digits", data_dir=data_dir, validation=0.25)
    np.testing.assert_array_equal(with_validation.validation_images, held_out.validation_images)
    assert {*with_validation.train_index} < {*held_out.train_index}


@pytest.mark.parametrize("size", [9, 1001])
def test_an_impossible_number_of_training_examples_is_an_error(size, data_dir):
    with pytest.raises(DataError, match=f"{size} training examples are impossible"):
        datasets.load("digits", data_dir=data_dir, train_examples=size)


def test_images_are_resized(data_dir):
    small = datasets.load("digits", data_dir=data_dir, image_size=4)
    whole = datasets.load("digits", data_dir=data_dir)
    assert small.train_images.shape == (1000, 4, 4, 1)
    distance = np.arange(8) + 0.5 - 2 * np.arange(4)[:, None] - 1
    weights = np.maximum(0, 1 - abs(distance) / 2)  # bilinear and antialiased: twice as wide
    weights /= weights.sum(1, keepdims=True)
    expected = np.einsum("ab,nbcd,ec->naed", weights, whole.train_images, weights)
    np.testing.assert_allclose(small.train_images, expected, atol=1)


def test_records_read_what_is_otherwise_in_memory(data_dir):
    whole = datasets.load("digits", data_dir=data_dir, validation=0.2, train_examples=500)
    records = datasets.load(
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
    file, _, *files = image_sets.CIFAR_FILES[name]
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
    dataset = datasets.load(name, data_dir=tmp_path / "prepared", data_files=tmp_path)
    assert dataset.num_classes == (10 if name == "cifar10" else 100)
    assert len(dataset.test_images) == 10
    np.testing.assert_array_equal(np.sort(dataset.train_index), np.arange(10 * train))
    np.testing.assert_array_equal(dataset.train_labels, dataset.train_index % 10)
    planes = dataset.train_images.transpose(0, 3, 1, 2).reshape(10 * train, 3072)
    np.testing.assert_array_equal(planes, pixels[dataset.train_index])


def test_a_faulty_cifar_is_an_error_that_says_where(tmp_path):
    with pytest.raises(DataError, match=r"no .*cifar-10-binary.tar.gz. Download it from www"):
        datasets.load("cifar10", data_dir=tmp_path, data_files=tmp_path)
    write_cifar(tmp_path, "cifar10", num_labels=1, train=5, drop=7)
    file = tmp_path / "cifar-10-binary.tar.gz"
    with pytest.raises(DataError, match=r"data_batch_1.bin in .* is no whole number of images"):
        datasets.load("cifar10", data_dir=tmp_path, data_files=file)
    with pytest.raises(DataError, match=r"lacks cifar-100-binary/train.bin. Is it of cifar100"):
        datasets.load("cifar100", data_dir=tmp_path, data_files=file)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"is damaged: .*data_batch_1.bin cannot be read"):
        datasets.load("cifar10", data_dir=tmp_path, data_files=file)


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
    dataset = datasets.load("tiny_imagenet", data_dir=tmp_path, data_files=tmp_path)
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
    again = datasets.load("tiny_imagenet", data_dir=tmp_path, data_files=file, in_memory=False)
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
    with pytest.raises(DataError, match=message) as error:
        datasets.load("tiny_imagenet", data_dir=tmp_path, data_files=tmp_path)
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
    with pytest.raises(DataError, match=rf"tiny\.zip.*{message}.*Download it again"):
        datasets.load("tiny_imagenet", data_dir=tmp_path, data_files=file)


def test_files_that_do_not_exist_are_errors_that_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"no tiny-imagenet-200\.zip\. Download.*--data-files"):
        datasets.load("tiny_imagenet", data_dir=tmp_path)
    for name in ("tiny_imagenet", "image_folder", "fashion_mnist"):
        with pytest.raises(DataError, match=r"nowhere.*--data-files"):
            datasets.load(name, data_dir=tmp_path, data_files=tmp_path / "nowhere")
    with pytest.raises(DataError, match="image_folder needs --data-files"):
        datasets.load("image_folder")


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
    dataset = datasets.load("image_folder", data_files=tmp_path, in_memory=in_memory)
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
    with pytest.raises(DataError, match=r"02\.jpeg has 10×14×3.*others 10×12.*--image-size"):
        datasets.load("image_folder", data_files=tmp_path)
    dataset = datasets.load("image_folder", data_files=tmp_path, image_size=8)
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
    with pytest.raises(DataError, match=message):
        datasets.load("image_folder", data_files=tmp_path)


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
    monkeypatch.setattr(datasets, "is_reachable", lambda url: True)
    splits = dict.fromkeys(("train", "validation", "test"))
    monkeypatch.setattr(tfds.core.DatasetInfo, "splits", splits)
    with tfds.testing.mock_data(as_data_source_fn=mock_as_data_source):
        yield


def test_a_data_set_of_tensorflow_datasets_is_loaded_by_name(tmp_path, mock_tfds):
    dataset = datasets.load("cifar10", data_dir=tmp_path)
    assert dataset.train_images.shape == dataset.test_images.shape == (16, 32, 32, 3)
    assert dataset.num_classes == 10
    assert dataset.mean.shape == dataset.std.shape == (3,)
    np.testing.assert_array_equal(dataset.train_index, 7 * np.arange(16) % 16)


def test_a_test_set_without_labels_gives_way_to_the_validation_set(tmp_path, mock_tfds):
    dataset = datasets.load("imagenet2012", data_dir=tmp_path, image_size=8)
    assert dataset.train_images.shape == (16, 8, 8, 3)
    np.testing.assert_array_equal(dataset.test_labels, np.arange(16))


@pytest.mark.parametrize(
    ("name", "message"),
    [("tf_flowers", "differ in size"), ("ag_news_subset", "not an image-classification")],
)
def test_data_sets_of_another_kind_are_errors(name, message, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "is_reachable", lambda url: True)
    with tfds.testing.mock_data(num_examples=1), pytest.raises(DataError, match=message):
        datasets.load(name, data_dir=tmp_path)


@pytest.mark.parametrize("load", [datasets.load, datasets.generated])
def test_an_unknown_name_gets_near_matches(load):
    with pytest.raises(DataError, match=r"'cifra10'.*Did you mean cifar10"):
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
    dataset = datasets.generated(name, num_examples=32)
    small = datasets.generated(name, num_examples=32, image_size=6)
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
    monkeypatch.setattr(datasets, "_TIMEOUT", 0.2)
    start = time.perf_counter()
    with pytest.raises(DataError, match=r"cs\.toronto\.edu cannot be reached.*--data-dir"):
        datasets.load("cifar10", data_dir=tmp_path)
    assert time.perf_counter() - start < 2.5


def test_a_server_that_answers_is_reachable(monkeypatch):
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert datasets.is_reachable(f"http://127.0.0.1:{port}/file")
    assert not datasets.is_reachable(f"http://127.0.0.1:{port}/file")


def test_given_labels_need_a_data_set_that_tells_its_order(tmp_path, mock_tfds):
    file = tmp_path / "labels.txt"
    file.write_text("1\n" * 16)
    dataset = datasets.load("mnist", data_dir=tmp_path)
    assert dataset.train_index is None
    with pytest.raises(DataError, match="does not tell the original one"):
        noise.training_labels(dataset, file, 0, seed=0)


@pytest.mark.parametrize("name", ["digits", "image_folder"])
def test_worker_processes_read_the_same_batches(name, data_dir, tmp_path):
    write_image_folder(tmp_path)
    dataset = datasets.load(name, data_dir=data_dir, data_files=tmp_path, in_memory=False)
    order = pipeline.Order(len(dataset.train_images), 6, seed=1)
    expected = list(pipeline.batches(dataset.train_images, order, 4, 13))
    got = pipeline.batches(dataset.train_images, order, 4, 13, num_workers=2)
    assert_same_batches(got, expected)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_cannot_be_read_is_an_error_that_names_it(num_workers, tmp_path):
    write_image_folder(tmp_path)
    dataset = datasets.load("image_folder", data_files=tmp_path, in_memory=False)
    file = tmp_path / "train/dog/07.jpeg"
    for change, message in (
        (lambda: file.write_bytes(jpeg(7)[:500]), r"train/dog/07\.jpeg cannot be decoded"),
        (file.unlink, r"train/dog/07\.jpeg cannot be read"),
    )[num_workers:]:
        change()
        batches = pipeline.batches(
            dataset.train_images, pipeline.Order(20, 20, seed=0), 0, 1, num_workers
        )
        with pytest.raises(DataError, match=message):
            next(batches)
