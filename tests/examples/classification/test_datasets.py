"""The data of the example: arrays, archives, folders and tensorflow-datasets; errors that help."""

import io
import os
import shutil
import socket
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from examples.classification import datasets, prepared
from examples.classification.image_files import Images
from examples.classification.options import Options
from examples.common import image_sets, reading
from examples.common.errors import DataError


def load(name, **settings):
    return datasets.load(Options(dataset=name, **settings))


def test_digits_with_validation_a_subset_and_noisy_labels(tmp_path):
    whole = load("digits")
    assert (whole.train_images.shape, whole.train_labels.dtype) == ((1000, 8, 8, 1), np.int32)
    assert whole.held_out_images.shape == (797, 8, 8, 1)
    normalized = (whole.train_images - whole.mean) / whole.std
    np.testing.assert_allclose([normalized.mean(), normalized.std()], [0, 1], atol=1e-5)

    file, given = tmp_path / "labels.npy", np.arange(1000) % 7
    np.save(file, given)
    part = load("digits", validation=True, train_examples=300, noisy_labels=file)
    assert (len(part.train_labels), len(part.held_out_labels)) == (300, 200)
    rows = {image.tobytes(): row for row, image in enumerate(whole.train_images)}
    train, held_out = (
        np.array([rows[image.tobytes()] for image in images])
        for images in (part.train_images, part.held_out_images)
    )
    assert not {*train} & {*held_out}
    np.testing.assert_array_equal(part.train_labels, given[train])
    np.testing.assert_array_equal(part.held_out_labels, whole.train_labels[held_out])
    shares = np.bincount(whole.train_labels[train]) / 300
    np.testing.assert_allclose(shares, np.bincount(whole.train_labels) / 1000, atol=1 / 200)
    with pytest.raises(DataError, match="--train-examples is impossible"):
        load("digits", train_examples=9)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(19, int), r"shape \(19,\), not 1000 integers"),
        (np.full(1000, 10), "labels up to 10, but the last class is 9"),
        (np.zeros(1000), r"float64 of the shape \(1000,\), not"),
        (np.array({"a": np.zeros(1000, int)}), "a .npy file of one array of integers"),
    ],
)
def test_labels_that_do_not_fit_are_errors(labels, message, tmp_path):
    np.save(tmp_path / "labels.npy", labels, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        load("digits", noisy_labels=tmp_path / "labels.npy")


def test_symmetric_noise_has_its_rate_spreads_evenly_and_draws_what_it_always_drew():
    labels = np.repeat(np.arange(10, dtype=np.int32), 4000)
    noisy = image_sets.add_symmetric_noise(labels, 0.4, 10, image_sets.noise_rng(3))
    assert noisy.dtype == np.int32
    shares = np.zeros((10, 10))
    np.add.at(shares, (labels, noisy), 1 / 4000)
    expected = np.full((10, 10), 0.4 / 9)
    np.fill_diagonal(expected, 0.6)
    np.testing.assert_allclose(shares, expected, atol=5 * np.sqrt(0.25 / 4000))
    noisy = image_sets.add_symmetric_noise(np.arange(20) % 10, 0.5, 10, image_sets.noise_rng(3))
    assert noisy.tolist() == [2, 6, 6, 7, 4, 5, 1, 7, 8, 9, 0, 5, 8, 3, 8, 0, 6, 7, 1, 3]


@pytest.mark.parametrize(("name", "num_labels", "files"), [("cifar10", 1, 5), ("cifar100", 2, 1)])
def test_cifar_is_read_from_its_archive(name, num_labels, files, tmp_path):
    file, num_classes, train, test = image_sets.CIFAR_FILES[name]
    rng, records = np.random.default_rng(0), np.zeros(0)
    with tarfile.open(tmp_path / file, "w:gz") as archive:
        for member in (*train, *test):
            records = rng.integers(0, 256, (10, num_labels + 3072), dtype=np.uint8)
            records[:, num_labels - 1] = np.arange(10)
            entry = tarfile.TarInfo(member)
            entry.size = records.size
            archive.addfile(entry, io.BytesIO(records.tobytes()))
    dataset = load(name, data_files=tmp_path)
    assert dataset.num_classes == num_classes
    assert dataset.train_images.shape == (10 * files, 32, 32, 3)
    np.testing.assert_array_equal(dataset.train_labels, np.arange(10 * files) % 10)
    planes = records[:, num_labels:].reshape(10, 3, 32, 32)
    np.testing.assert_array_equal(dataset.held_out_images, planes.transpose(0, 2, 3, 1))


def jpeg(seed, size=(64, 64), mode="RGB"):
    """The bytes of a file."""
    rng = np.random.default_rng(seed)
    shape = (*size[::-1], 3) if mode == "RGB" else size[::-1]
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def pixels(content, size=None):
    image = Image.open(io.BytesIO(content)).convert("RGB")
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR) if size else image)


WNIDS = ["n3", "n1", "n2"]  # not sorted, as in the original
IMAGE = "train/n2/images/n2_0.JPEG"


def tiny_imagenet_files():
    """Two training images of each of two classes, one of the third, and two test images."""
    files = {"wnids.txt": "\n".join(WNIDS).encode()}
    for label, wnid in enumerate(WNIDS):
        for i in (10, 9) if label < 2 else (0,):
            content = jpeg(10 * label + i, mode="L" if label == 1 else "RGB")
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = content
    annotations = [f"val_{i}.JPEG\t{WNIDS[i]}\t0\t0\t63\t63" for i in range(2)]
    files["val/val_annotations.txt"] = "\n".join(annotations).encode()
    for i in range(2):
        files[f"val/images/val_{i}.JPEG"] = jpeg(5000 + i)
    return files


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)


@pytest.mark.parametrize("threads", [0, 1])
def test_tiny_imagenet_is_read_from_its_zip_file(threads, tmp_path):
    files = tiny_imagenet_files()
    write_zip(tmp_path / "tiny-imagenet-200.zip", files)
    dataset = load("tiny_imagenet", data_files=tmp_path, input_threads=threads)
    assert isinstance(dataset.train_images, Images) == bool(threads)
    names = [f"n3/images/n3_{i}" for i in (9, 10)] + [f"n1/images/n1_{i}" for i in (9, 10)]
    expected = [pixels(files[f"train/{name}.JPEG"]) for name in [*names, "n2/images/n2_0"]]
    np.testing.assert_array_equal(dataset.train_images[:], expected)
    np.testing.assert_array_equal(
        dataset.train_images[np.array([3, 0])], [expected[3], expected[0]]
    )
    np.testing.assert_array_equal(dataset.train_labels, [0, 0, 1, 1, 2])
    tests = [pixels(files[f"val/images/val_{i}.JPEG"]) for i in range(2)]
    np.testing.assert_array_equal(dataset.held_out_images[:], tests)
    np.testing.assert_array_equal(dataset.held_out_labels, [0, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wnids.txt": None}, r"no item named .*wnids\.txt"),
        ({"val/images/val_1.JPEG": None}, r"no item named .*val/images/val_1\.JPEG"),
        ({IMAGE: None}, "no images of n2"),
        ({"val/val_annotations.txt": b"val_0.JPEG\tn9\t0"}, "'n9' is not in list"),
        ({"val/val_annotations.txt": b""}, "no images of any class"),
        ({IMAGE: jpeg(30)[:300]}, "n2_0.JPEG in .*cannot be read as an image"),
        ({IMAGE: bytes(40_000)}, "n2_0.JPEG in .* declares 40,000 bytes, more than the 30,000"),
        (lambda content: content[:-200], "cannot be read as the zip file of"),
        (lambda content: content.replace(jpeg(20)[300:310], b"0123456789"), "Bad CRC-32"),
    ],
)
def test_a_faulty_tiny_imagenet_is_an_error_that_says_where(
    changes, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(reading, "MOST_BYTES", 30_000)
    file, files = tmp_path / "tiny-imagenet-200.zip", tiny_imagenet_files()
    if isinstance(changes, dict):
        files = {k: v for k, v in (files | changes).items() if v is not None}
    write_zip(file, files)
    if not isinstance(changes, dict):
        file.write_bytes(changes(file.read_bytes()))
    with pytest.raises(DataError, match=message) as error:
        load("tiny_imagenet", data_files=tmp_path)
    assert "tiny-imagenet-200.zip" in str(error.value)


@pytest.mark.parametrize("name", ["tiny_imagenet", "image_folder", "fashion_mnist", "cifar10"])
def test_files_that_do_not_exist_are_errors_that_say_what_to_do(name, tmp_path):
    with pytest.raises(DataError, match="--data-files") as error:
        load(name, data_files=tmp_path / "nowhere")
    assert "nowhere" in str(error.value)


@pytest.mark.parametrize("name", ["tiny_imagenet", "cifar10"])
def test_a_pipe_in_place_of_an_archive_does_not_block(name, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is neither a file nor a folder"):
        load(name, data_files=tmp_path / "pipe")


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


@pytest.mark.parametrize(("test", "threads"), [("test", 0), ("val", 1)])
def test_an_image_folder_is_read_in_the_order_of_its_names(test, threads, tmp_path):
    files = write_image_folder(tmp_path, test=test)
    dataset = load("image_folder", data_files=tmp_path, input_threads=threads)
    assert dataset.num_classes == 2
    for part, got, labels in (
        ("train", dataset.train_images, dataset.train_labels),
        (test, dataset.held_out_images, dataset.held_out_labels),
    ):
        names = sorted(name for name in files if name.startswith(f"{part}/"))
        np.testing.assert_array_equal(got[:], [pixels(files[name]) for name in names])
        np.testing.assert_array_equal(labels, ["/dog/" in name for name in names])


def test_images_of_different_sizes_need_a_size(tmp_path):
    files = write_image_folder(tmp_path, size=lambda i: (12 + i, 10))
    with pytest.raises(DataError, match=r"02\.jpeg has 10×14×3.*others 10×12.*--image-size"):
        load("image_folder", data_files=tmp_path)
    dataset = load("image_folder", data_files=tmp_path, image_size=8)
    names = sorted(name for name in files if name.startswith("train/"))
    expected = [pixels(files[name], (8, 8)) for name in names]
    np.testing.assert_array_equal(dataset.train_images, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "train").rename(folder / "Train"), "that has the folder train"),
        (lambda folder: (folder / "test").rename(folder / "t"), "one of test, val, validation"),
        (lambda folder: shutil.rmtree(folder / "train/dog"), "needs at least two"),
        (lambda folder: (folder / "test/dog").rename(folder / "test/fox"), "train lacks: fox"),
        (lambda folder: (folder / "train/fox").mkdir(), "train/fox has no images"),
        (
            lambda folder: (folder / "train/dog/01.jpeg").write_bytes(jpeg(1)[:400]),
            r"train/dog/01\.jpeg cannot be read as an image.*Replace or remove it",
        ),
    ],
)
def test_a_faulty_image_folder_is_an_error_that_says_where(change, message, tmp_path):
    write_image_folder(tmp_path)
    change(tmp_path)
    with pytest.raises(DataError, match=message):
        load("image_folder", data_files=tmp_path)


def test_data_sets_of_tensorflow_datasets_are_loaded_by_name(tmp_path, monkeypatch):
    """Every data set of tensorflow-datasets has 16 images in each of three splits here."""
    import tensorflow_datasets as tfds

    def mock_as_data_source(self, split, **kwargs):
        features = self.info.features
        is_secret = self.name == "imagenet2012" and split == "test"
        return [
            {
                "image": np.full([size or 9 for size in features["image"].shape], i, np.uint8),
                "label": -1 if is_secret else i % features["label"].num_classes,
            }
            for i in range(16)
        ]

    monkeypatch.setattr(prepared, "_is_reachable", lambda url: True)
    splits = dict.fromkeys(("train", "validation", "test"))
    monkeypatch.setattr(tfds.core.DatasetInfo, "splits", splits)
    with tfds.testing.mock_data(as_data_source_fn=mock_as_data_source):
        dataset = load("cifar10", data_dir=tmp_path)
        assert dataset.train_images.shape == dataset.held_out_images.shape == (16, 32, 32, 3)
        np.testing.assert_array_equal(dataset.train_images[:, 0, 0, 0], np.arange(16))
        np.testing.assert_array_equal(dataset.train_labels, np.arange(16) % 10)
        # The test labels of ImageNet are secret, so its validation set is the test set.
        dataset = load("imagenet2012", data_dir=tmp_path, image_size=8)
        assert dataset.train_images.shape == (16, 8, 8, 3)
        np.testing.assert_array_equal(dataset.held_out_labels, np.arange(16))
        with pytest.raises(DataError, match="prepared form has another order"):
            load("cifar10", data_dir=tmp_path, noisy_labels=tmp_path / "labels.npy")
        for name, message in (
            ("tf_flowers", "differ in size"),
            ("ag_news_subset", "not an image classification"),
        ):
            with pytest.raises(DataError, match=message):
                load(name, data_dir=tmp_path)
    with pytest.raises(DataError, match=r"'cifra10'.*(?s:.)*cifar10"):
        load("cifra10")


def test_without_a_network_a_data_set_that_is_not_prepared_is_an_error(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(DataError, match=r"cs\.toronto\.edu cannot be reached.*--data-dir"):
        load("cifar10", data_dir=tmp_path)
    for name, (shape, num_classes) in datasets._SHAPES.items():
        dataset = datasets.generated(name, 16)
        assert dataset.train_images.shape == dataset.held_out_images.shape == (16, *shape)
        assert dataset.num_classes == num_classes
    assert datasets.generated("cifar10", 16, 6).train_images.shape == (16, 6, 6, 3)


def test_a_server_that_answers_is_reachable(monkeypatch):
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert prepared._is_reachable(f"http://127.0.0.1:{port}/file")
    assert not prepared._is_reachable(f"http://127.0.0.1:{port}/file")


def test_a_data_set_is_prepared_once_and_read_from_its_files(tmp_path):
    """With a builder of tensorflow-datasets that needs no network."""
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                "label": tfds.features.ClassLabel(num_classes=6),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples() for split in ("train", "test")}

        def _generate_examples(self):
            for i in range(6):
                yield i, {"image": np.full((8, 8, 1), i, np.uint8), "label": i}

    for _ in range(2):
        builder = Tiny(data_dir=tmp_path, file_format="array_record")
        train, test, num_classes = prepared.load(builder, (4, 4, 1), 6)
        assert num_classes == 6
        np.testing.assert_array_equal(train.images[:][:, 0, 0, 0], train.labels)
        assert sorted(train.labels) == [*range(6)]
        assert train.images.shape == test.images.shape == (6, 4, 4, 1)
    (file,) = tmp_path.rglob("*train*array_record*")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"tiny/1.*cannot be read.*Delete that folder"):
        prepared.load(Tiny(data_dir=tmp_path, file_format="array_record"), (4, 4, 1), 6)
