"""The statistics of the registered experiment on language models."""

import numpy as np
import pytest

from benchmarks.language import analysis


def test_a_value_is_taken_between_the_last_two_points_around_a_loss():
    losses, values = [3.0, 2.0, 2.5, 1.0], [0.0, 10.0, 20.0, 30.0]
    assert analysis.at_loss(losses, values, 1.75) == pytest.approx(25)
    assert analysis.at_loss(losses, values, 2.75) == pytest.approx(2.5)
    assert analysis.at_loss(losses, values, 1.0) == 30


def test_the_sign_flip_test_is_exact():
    assert analysis.sign_flip(-np.ones(10)) == 1 / 1024
    assert analysis.sign_flip(np.ones(10)) == 1
    assert analysis.sign_flip(np.array([-3.0, 1.0])) == 2 / 4  # −4 and −2 of ±3 ± 1


def test_holm_corrects_in_order():
    assert analysis.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert analysis.holm([0.9, 0.8]) == [1.0, 1.0]


def run(shift):
    """A trajectory on which rounding and forgetting cost more by ``shift`` at the same losses."""
    return {
        "loss": [2.0, 1.5, 1.0 + shift],
        "rounding_4": [1.0, 2.0, 3.0],
        "learned": [[3.0, 2.0]] * 3,
        "forgotten": [[0.0 + shift, 1.0 + shift]] * 3,
    }


def test_differences_are_paired_at_matched_loss_and_in_the_table():
    runs = {(arm, seed): run(0.1 * (arm != "adamw")) for arm in ("adamw", "sam") for seed in (0, 1)}
    runs["sam", 2] = run(0.1)  # without its partner
    rounding = analysis.differences(runs, "sam", "rounding_4")
    np.testing.assert_allclose(rounding, [3 - 2.8] * 2)  # at 1.1, where AdamW is at 2.8
    np.testing.assert_allclose(analysis.differences(runs, "sam", "forgetting"), [0.1] * 2)
    assert "| sam | rounding_4 | +0.2000 ± 0.0000 | 2 | 1 | False |" in analysis.table(runs)
