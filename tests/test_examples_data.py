"""The data of the examples: builders, label noise, order, and errors that come at once."""

import gzip
import socket
import struct
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from examples import builders, data


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
    held_out = {image.tobytes() for image in part.test_images}
    assert len(held_out) == 250
    assert held_out <= {image.tobytes() for image in whole.train_images}
    assert not held_out & {image.tobytes() for image in part.train_images}


def test_an_impossible_validation_share_is_an_error(data_dir):
    with pytest.raises(data.DataError, match="validation share"):
        data.load("digits", data_dir=data_dir, validation=0.001)


def test_fashion_mnist_is_read_from_idx_files(tmp_path):
    arrays = write_idx_folder(tmp_path, seed=0)
    dataset = data.load("fashion_mnist", data_dir=tmp_path / "prepared", data_files=tmp_path)
    for images, labels, expected in (
        (dataset.train_images, dataset.train_labels, arrays["train"]),
        (dataset.test_images, dataset.test_labels, arrays["t10k"]),
    ):
        got = {(image.tobytes(), label) for image, label in zip(images, labels, strict=True)}
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


def test_a_file_that_is_not_idx_is_an_error(tmp_path):
    path = tmp_path / "not.gz"
    path.write_bytes(gzip.compress(b"hello world"))
    with pytest.raises(ValueError, match="not an idx file"):
        builders.read_idx(path)


class MockSource(list):
    """What ``as_data_source`` returns, as far as it is used."""

    def __getitems__(self, keys):
        return [self[key] for key in keys]


def mock_as_data_source(self, split, **kwargs):
    features = self.info.features
    rng = np.random.default_rng(split == "test")
    return MockSource(
        {
            "image": rng.integers(0, 256, features["image"].shape, dtype=np.uint8),
            "label": i % features["label"].num_classes,
        }
        for i in range(16)
    )


def test_a_data_set_of_tensorflow_datasets_is_loaded_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "is_reachable", lambda url: True)
    with tfds.testing.mock_data(num_examples=16, as_data_source_fn=mock_as_data_source):
        dataset = data.load("cifar10", data_dir=tmp_path)
    assert dataset.train_images.shape == dataset.test_images.shape == (16, 32, 32, 3)
    assert dataset.num_classes == 10
    assert dataset.mean.shape == dataset.std.shape == (3,)


@pytest.mark.parametrize(
    ("name", "message"),
    [("tf_flowers", "differ in size"), ("ag_news_subset", "not an image-classification")],
)
def test_data_sets_of_another_kind_are_errors(name, message, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "is_reachable", lambda url: True)
    with tfds.testing.mock_data(num_examples=1), pytest.raises(data.DataError, match=message):
        data.load(name, data_dir=tmp_path)


def test_an_unknown_name_gets_near_matches():
    with pytest.raises(data.DataError, match=r"'cifra10'.*Did you mean cifar10"):
        data.load("cifra10")


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


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 0.8])
def test_symmetric_noise_has_its_rate_and_spreads_evenly(rate):
    labels = np.repeat(np.arange(10, dtype=np.int32), 4000)
    noisy = data.add_symmetric_noise(labels, rate, 10, seed=3)
    assert noisy.dtype == labels.dtype
    transitions = np.zeros((10, 10))
    np.add.at(transitions, (labels, noisy), 1 / 4000)
    expected = np.full((10, 10), rate / 9)
    np.fill_diagonal(expected, 1 - rate)
    np.testing.assert_allclose(transitions, expected, atol=5 * np.sqrt(0.25 / 4000))


def test_noise_and_order_are_functions_of_the_seed():
    labels = np.zeros(1000, np.int32)

    def noise(seed):
        return data.add_symmetric_noise(labels, 0.5, 10, seed)

    np.testing.assert_array_equal(noise(1), noise(1))
    assert (noise(1) != noise(2)).any()

    def order(seed, epoch):
        return data.epoch_order(1000, seed, epoch)

    np.testing.assert_array_equal(order(1, 5), order(1, 5))
    np.testing.assert_array_equal(np.sort(order(1, 5)), np.arange(1000))
    assert (order(1, 5) != order(1, 6)).any()
    assert (order(1, 5) != order(2, 5)).any()
