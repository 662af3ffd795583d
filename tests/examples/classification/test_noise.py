"""Label noise: generated with a rate, or given in a file."""

import numpy as np
import pytest

from examples.classification import datasets, noise
from examples.common.errors import DataError


def labelled(name, labels, num_classes):
    """A data set with these training labels."""
    labels = np.asarray(labels, np.int32)
    dataset = datasets.generated("digits", 8)
    size = len(labels)
    return dataset._replace(
        name=name,
        train_labels=labels,
        num_classes=num_classes,
        train_index=np.arange(size),
        num_original=size,
    )


def transitions(labels, noisy, num_classes):
    """The share of the labels of each class that became each other one."""
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (labels, noisy), 1)
    return counts / counts.sum(1, keepdims=True)


@pytest.mark.parametrize("rate", [0.0, 0.4, 0.8])
def test_symmetric_noise_has_its_rate_and_spreads_evenly(rate):
    dataset = labelled("digits", np.repeat(np.arange(10), 4000), 10)
    noisy = noise.training_labels(dataset, "symmetric", rate, seed=3)
    assert noisy.dtype == np.int32
    expected = np.full((10, 10), rate / 9)
    np.fill_diagonal(expected, 1 - rate)
    got = transitions(dataset.train_labels, noisy, 10)
    np.testing.assert_allclose(got, expected, atol=5 * np.sqrt(0.25 / 4000))


def test_symmetric_noise_draws_what_it_always_drew():
    dataset = labelled("digits", np.arange(20) % 10, 10)
    noisy = noise.training_labels(dataset, "symmetric", 0.5, seed=3)
    np.testing.assert_array_equal(
        noisy, [2, 6, 6, 7, 4, 5, 1, 7, 8, 9, 0, 5, 8, 3, 8, 0, 6, 7, 1, 3]
    )
    other = noise.training_labels(dataset, "symmetric", 0.5, seed=4)
    assert (noisy != other).any()


@pytest.mark.parametrize(
    ("name", "num_classes", "expected"),
    [
        ("cifar10", 10, [0, 1, 0, 5, 7, 3, 6, 7, 8, 1]),
        ("fashion_mnist", 10, [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]),
    ],
)
def test_asymmetric_noise_mistakes_a_class_for_one_other(name, num_classes, expected):
    dataset = labelled(name, np.repeat(np.arange(num_classes), 4000), num_classes)
    noisy = noise.training_labels(dataset, "asymmetric", 0.3, seed=3)
    rates = 0.7 * np.eye(num_classes) + 0.3 * np.eye(num_classes)[expected]
    got = transitions(dataset.train_labels, noisy, num_classes)
    np.testing.assert_allclose(got, rates, atol=5 * np.sqrt(0.25 / 4000))


def test_classes_of_cifar100_are_mistaken_for_the_next_of_their_superclass():
    coarse = np.array(  # the coarse label of each class in the data set
        [
            *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11),
            *(6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5),
            *(5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17),
            *(10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13),
            *(16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
        ]
    )
    classes = noise.mistaken_for("cifar100", 100)
    for superclass in range(20):
        members = np.flatnonzero(coarse == superclass)
        np.testing.assert_array_equal(classes[members], np.roll(members, -1))


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_labels_of_a_file_are_matched_with_the_original_order(suffix, tmp_path):
    given, file = np.arange(1000) % 7, tmp_path / f"labels{suffix}"
    if suffix == ".npy":
        np.save(file, given)
    else:
        np.savetxt(file, given, fmt="%d")
    dataset = datasets.load("digits", validation=True, train_examples=100)
    got = noise.training_labels(dataset, str(file), 0, seed=0)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, dataset.train_index % 7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1\n" * 19, r"shape \(19,\), but the whole training set of digits has 20"),
        ("10\n" * 20, r"from 10 to 10; the classes of digits are 0 to 9"),
        ("1.5\n" * 20, r"cannot be read as labels.*'1\.5'"),
        (b"\xff\xfe", "cannot be read as labels"),
        (np.zeros(20), "holds float64, not integers"),
        (np.array({"a": np.zeros(20, int)}), "save the one to use"),
    ],
)
def test_labels_that_do_not_fit_are_errors(content, message, tmp_path):
    file = tmp_path / f"labels.{'npy' if isinstance(content, np.ndarray) else 'txt'}"
    if isinstance(content, np.ndarray):
        np.save(file, content, allow_pickle=True)
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        noise.training_labels(labelled("digits", np.zeros(20), 10), str(file), 0, seed=0)


def test_labels_of_a_file_need_a_data_set_that_tells_its_order(tmp_path):
    file = tmp_path / "labels.txt"
    file.write_text("1\n" * 20)
    dataset = labelled("mnist", np.zeros(20), 10)._replace(train_index=None)
    with pytest.raises(DataError, match="does not contain the original order"):
        noise.training_labels(dataset, str(file), 0, seed=0)
