"""Wrong labels: made by a rate, or given in a file."""

import numpy as np
import pytest

from examples.classification.data import datasets, noise
from examples.common.errors import DataError


def labelled(name, labels, num_classes):
    """A data set with these training labels."""
    labels = np.asarray(labels, np.int32)
    dataset = datasets.generated("digits", num_examples=len(labels))
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
    dataset = datasets.load("digits", data_dir=data_dir)
    with pytest.raises(DataError, match="'symetric': it is symmetric, asymmetric, or a file"):
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
        dataset = datasets.load("digits", data_dir=data_dir, **options)
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
    dataset = datasets.load("digits", data_dir=data_dir)
    with pytest.raises(DataError, match=message):
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
    dataset = datasets.load("digits", data_dir=data_dir)
    with pytest.raises(DataError, match=message):
        noise.training_labels(dataset, tmp_path / "labels.npy", 0, seed=0)


def test_given_labels_with_a_rate_are_an_error(data_dir, tmp_path):
    file = tmp_path / "labels.txt"
    file.write_text("1\n" * 1000)
    with pytest.raises(DataError, match=r"a rate of 0\.4 is for made noise"):
        noise.training_labels(datasets.load("digits", data_dir=data_dir), file, 0.4, seed=0)


def test_noise_is_a_function_of_the_seed():
    dataset = labelled("digits", np.zeros(1000), 10)
    for kind in noise.NOISES:
        first, again, other = (
            noise.training_labels(dataset, kind, 0.5, seed) for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()
