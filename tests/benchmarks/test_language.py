"""The registered experiment on language models: its statistics."""

import numpy as np
import pytest

from benchmarks.language import report
from benchmarks.statistics import at_loss, holm, sign_flip


def test_a_value_is_taken_between_the_last_two_points_around_a_loss():
    losses, values = [3.0, 2.0, 2.5, 1.0], [0.0, 10.0, 20.0, 30.0]
    assert at_loss(losses, values, 1.75) == pytest.approx(25)
    assert at_loss(losses, values, 2.75) == pytest.approx(2.5)
    assert at_loss(losses, values, 1.0) == 30


def test_the_sign_flip_test_is_exact():
    assert sign_flip([-1.0] * 10) == 1 / 1024
    assert sign_flip([1.0] * 10) == 1
    assert sign_flip([-3.0, 1.0]) == 2 / 4  # −4 and −2 of ±3 ± 1


def test_holm_corrects_in_order():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def run(shift):
    """A run that loses more by rounding and forgets more by ``shift`` at the same losses."""
    row = {}
    for point, loss in enumerate((2.0, 1.75, 1.5, 1.0 + shift), 1):
        row |= {f"loss_at_{point}": loss, f"rounding_4_at_{point}": float(point)}
        for place, learned in enumerate((3.0, 2.5, 2.0)):
            row[f"learned_{place}_at_{point}"] = learned
            row[f"forgotten_{place}_at_{point}"] = place + shift
    return row


def test_differences_are_paired_at_matched_loss():
    runs = {(arm, seed): run(0.1 * (arm != "adamw")) for arm in ("adamw", "sam") for seed in (0, 1)}
    runs["sam", 2] = run(0.1)  # without its partner
    rounding = report.differences(runs, "sam", "rounding_4")
    np.testing.assert_allclose(rounding, [4 - 3.8] * 2)  # at 1.1, where AdamW is at 3.8
    np.testing.assert_allclose(report.differences(runs, "sam", "forgetting"), [0.1] * 2)
