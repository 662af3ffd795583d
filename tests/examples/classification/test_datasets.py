"""The data of the example: arrays, archives, folders and tensorflow-datasets; errors that help."""

import io
import shutil
import socket
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from examples.classification import datasets, prepared
from examples.classification.images import Records
from examples.common import image_sets
from examples.common.errors import DataError


def test_digits_with_validation_and_a_subset():
    whole = datasets.load("digits")
    assert (whole.train_images.shape, whole.train_labels.dtype) == ((1000, 8, 8, 1), np.int32)
    assert whole.held_out_images.shape == (797, 8, 8, 1)
    normalized = (whole.train_images - whole.mean) / whole.std
    np.testing.assert_allclose([normalized.mean(), normalized.std()], [0, 1], atol=1e-5)

    part = datasets.load("digits", validation=True)
    assert (len(part.train_labels), len(part.held_out_labels)) == (800, 200)
    held_out = {image.tobytes() for image in part.held_out_images}
    assert held_out <= {image.tobytes() for image in whole.train_images}
    assert not held_out & {image.tobytes() for image in part.train_images}

    parts = [datasets.load("digits", validation=True, train_examples=n) for n in (10, 300)]
    for subset, size in zip(parts, (10, 300), strict=True):
        assert len(subset.train_images) == len(subset.train_index) == size
        shares = np.bincount(subset.train_labels) / size
        expected = np.bincount(part.train_labels) / 800
        np.testing.assert_allclose(shares, expected, atol=1 / size)
        np.testing.assert_array_equal(subset.train_images, whole.train_images[subset.train_index])
        assert subset.num_original == 1000
    assert {*parts[0].train_index} < {*parts[1].train_index} < {*part.train_index}
    for size in (9, 1001):
        with pytest.raises(DataError, match=f"--train-examples {size} is impossible"):
            datasets.load("digits", train_examples=size)


def test_images_are_resized():
    small, whole = (datasets.load("digits", image_size=size) for size in (4, 0))
    assert small.train_images.shape == (1000, 4, 4, 1)
    distance = np.arange(8) + 0.5 - 2 * np.arange(4)[:, None] - 1
    weights = np.maximum(0, 1 - abs(distance) / 2)  # bilinear and antialiased: twice as wide
    weights /= weights.sum(1, keepdims=True)
    expected = np.einsum("ab,nbcd,ec->naed", weights, whole.train_images, weights)
    np.testing.assert_allclose(small.train_images, expected, atol=1)


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
    dataset = datasets.load(name, data_files=tmp_path)
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


@pytest.mark.parametrize("in_memory", [True, False])
def test_tiny_imagenet_is_read_from_its_zip_file(in_memory, tmp_path):
    files = tiny_imagenet_files()
    write_zip(tmp_path / "tiny-imagenet-200.zip", files)
    dataset = datasets.load("tiny_imagenet", data_files=tmp_path, in_memory=in_memory)
    assert isinstance(dataset.train_images, Records) != in_memory
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
        ({"wnids.txt": None}, r"lacks wnids\.txt"),
        ({"val/images/val_1.JPEG": None}, r"lacks val/images/val_1\.JPEG"),
        ({IMAGE: None}, "no training images of n2"),
        ({"val/val_annotations.txt": b"val_0.JPEG\tn9\t0"}, "unknown class in val/val_annotations"),
        ({IMAGE: jpeg(30)[:300]}, "n2_0.JPEG in .*cannot be decoded"),
    ],
)
def test_a_faulty_tiny_imagenet_is_an_error_that_says_where(changes, message, tmp_path):
    files = {k: v for k, v in (tiny_imagenet_files() | changes).items() if v is not None}
    write_zip(tmp_path / "tiny-imagenet-200.zip", files)
    with pytest.raises(DataError, match=message) as error:
        datasets.load("tiny_imagenet", data_files=tmp_path)
    assert "tiny-imagenet-200.zip" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-200], "opened as a zip"),
        (lambda content: content.replace(jpeg(20)[300:310], b"0123456789"), "is damaged: train/"),
    ],
)
def test_a_damaged_zip_file_is_an_error_that_names_it(change, message, tmp_path):
    file = tmp_path / "tiny.zip"
    write_zip(file, tiny_imagenet_files())
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataError, match=rf"tiny\.zip.*{message}.*Download it again"):
        datasets.load("tiny_imagenet", data_files=file)


@pytest.mark.parametrize("name", ["tiny_imagenet", "image_folder", "fashion_mnist"])
def test_files_that_do_not_exist_are_errors_that_say_what_to_do(name, tmp_path):
    with pytest.raises(DataError, match="--data-files") as error:
        datasets.load(name, data_files=tmp_path / "nowhere")
    assert "nowhere" in str(error.value)


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


@pytest.mark.parametrize(("test", "in_memory"), [("test", True), ("val", False)])
def test_an_image_folder_is_read_in_the_order_of_its_names(test, in_memory, tmp_path):
    files = write_image_folder(tmp_path, test=test)
    dataset = datasets.load("image_folder", data_files=tmp_path, in_memory=in_memory)
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
        datasets.load("image_folder", data_files=tmp_path)
    dataset = datasets.load("image_folder", data_files=tmp_path, image_size=8)
    names = sorted(name for name in files if name.startswith("train/"))
    expected = [pixels(files[name], (8, 8)) for name in names]
    np.testing.assert_array_equal(dataset.train_images, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "train").rename(folder / "Train"), "needs the folder train"),
        (lambda folder: (folder / "test").rename(folder / "t"), "one of test, val, validation"),
        (lambda folder: shutil.rmtree(folder / "train/dog"), "train has only one class, cat"),
        (lambda folder: (folder / "test/fox").mkdir(), "classes that .*train lacks: fox"),
        (lambda folder: (folder / "train/fox").mkdir(), "train/fox has no images"),
        (
            lambda folder: (folder / "train/dog/01.jpeg").write_bytes(jpeg(1)[:400]),
            r"train/dog/01\.jpeg cannot be decoded.*Replace or remove it",
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
    shape = [size or 9 for size in features["image"].shape]
    is_secret = self.name == "imagenet2012" and split == "test"
    return MockSource(
        {
            "image": np.full(shape, i, np.uint8),
            "label": -1 if is_secret else i % features["label"].num_classes,
            "id": f"{split}_{7 * i % 16:05}".encode(),
        }
        for i in range(16)
    )


def test_data_sets_of_tensorflow_datasets_are_loaded_by_name(tmp_path, monkeypatch):
    """Every data set of tensorflow-datasets has 16 images in each of three splits here."""
    import tensorflow_datasets as tfds

    monkeypatch.setattr(prepared, "_is_reachable", lambda url: True)
    splits = dict.fromkeys(("train", "validation", "test"))
    monkeypatch.setattr(tfds.core.DatasetInfo, "splits", splits)
    with tfds.testing.mock_data(as_data_source_fn=mock_as_data_source):
        dataset = datasets.load("cifar10", data_dir=tmp_path)
        assert dataset.train_images.shape == dataset.held_out_images.shape == (16, 32, 32, 3)
        np.testing.assert_array_equal(dataset.train_images[:, 0, 0, 0], np.arange(16))
        np.testing.assert_array_equal(dataset.train_labels, np.arange(16) % 10)
        np.testing.assert_array_equal(dataset.train_index, 7 * np.arange(16) % 16)
        # The test labels of ImageNet are secret, so its validation set is the test set.
        dataset = datasets.load("imagenet2012", data_dir=tmp_path, image_size=8)
        assert dataset.train_images.shape == (16, 8, 8, 3)
        np.testing.assert_array_equal(dataset.held_out_labels, np.arange(16))
        for name, message in (
            ("tf_flowers", "differ in size"),
            ("ag_news_subset", "not an image classification"),
        ):
            with pytest.raises(DataError, match=message):
                datasets.load(name, data_dir=tmp_path)
    with pytest.raises(DataError, match=r"'cifra10'.*Did you mean cifar10"):
        datasets.load("cifra10")


def test_without_a_network_a_data_set_that_is_not_prepared_is_an_error(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(DataError, match=r"cs\.toronto\.edu cannot be reached.*--data-dir"):
        datasets.load("cifar10", data_dir=tmp_path)
    for name, (shape, num_classes) in datasets._SHAPES.items():
        dataset = datasets.generated(name, 16)
        assert dataset.train_images.shape == dataset.held_out_images.shape == (16, *shape)
        assert dataset.num_classes == num_classes
        small = datasets.generated(name, 16, image_size=6)
        assert small.train_images.shape == (16, 6, 6, shape[-1])


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
                "id": tfds.features.Text(),
                "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                "label": tfds.features.ClassLabel(num_classes=2),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in ("train", "test")}

        def _generate_examples(self, split):
            for i in range(6):
                image = np.full((8, 8, 1), i, np.uint8)
                yield i, {"id": f"{split}_{i}", "image": image, "label": i % 2}

    for _ in range(2):
        builder = Tiny(data_dir=tmp_path, file_format="array_record")
        (images, labels, positions), (tests, _, _), num_classes = prepared.load(builder, 4)
        assert num_classes == 2
        np.testing.assert_array_equal(images[:][:, 0, 0, 0], positions)
        np.testing.assert_array_equal(labels, positions % 2)
        assert images.shape == tests.shape == (6, 4, 4, 1)
    (file,) = tmp_path.rglob("*train*array_record*")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"tiny/1.*cannot be read.*Delete that folder"):
        prepared.load(Tiny(data_dir=tmp_path, file_format="array_record"), 4)
