"""Means with their errors."""

import math

import numpy as np
import pytest

from benchmarks.harness import statistics
from benchmarks.harness.statistics import FLOOR, Estimate, gap_closed


def test_gap_closed():
    gap = gap_closed([73, 75, 74], [70, 71, 72], [74, 75, 76])
    assert gap.mean == pytest.approx(100 * 3 / 4)
    # d = 3, 4, 2 and D = 4, 4, 4: residuals 0, 1, -1
    assert gap.error == pytest.approx(100 * (1 / math.sqrt(3)) / 4)


def test_gap_of_the_references_is_exact():
    sgd, sam = [70, 71.5, 72], [74, 75, 75.5]
    assert gap_closed(sgd, sgd, sam) == (0, 0)
    assert gap_closed(sam, sgd, sam) == pytest.approx((100, 0))


def test_error_of_the_gap_is_that_of_repeated_experiments():
    rng = np.random.default_rng(0)
    gaps, errors = [], []
    for _ in range(2000):
        shared = rng.normal(size=8)
        sgd, sam, method = (m + shared + 0.5 * rng.normal(size=8) for m in (70, 80, 78))
        gap = gap_closed(list(method), list(sgd), list(sam))
        gaps.append(gap.mean)
        errors.append(gap.error)
    assert np.mean(errors) == pytest.approx(np.std(gaps), rel=0.1)


def test_one_seed_has_no_error_and_no_gain_no_gap():
    assert math.isnan(gap_closed([73], [70], [74]).error)
    assert math.isnan(gap_closed([73, 73], [70, 71], [71, 70]).mean)


def test_a_collapse_is_bounded_in_the_mean():
    found = statistics.mean_of([Estimate(-6400, 50), Estimate(80, 3)])
    assert found == ((FLOOR + 80) / 2, 1.5)


def test_means():
    assert statistics.mean_and_std([1, 2, 3]) == (2, 1)
    assert statistics.mean_and_error([1, 2, 3]) == pytest.approx((2, 1 / math.sqrt(3)))
    assert f"{statistics.mean_and_error([4]):.1f}" == "4.0"
    assert f"{statistics.mean_and_error([]):.1f}" == "–"


def test_jackknife_of_a_mean_is_its_standard_error():
    values = [1.0, 2.0, 4.0, 9.0]
    expected = statistics.mean_and_error(values)
    assert statistics.jackknife(lambda some: sum(some) / len(some), values) == pytest.approx(
        expected
    )
