"""Tables and figures of the frontier, of fake runs."""

import math

import pytest

from benchmarks.frontier import report
from benchmarks.harness.statistics import FLOOR
from benchmarks.harness.tuning import Run
from tests.benchmarks.conftest import row_of


def a_run(seed: int, **changes) -> Run:
    run = Run("transfer", "m1d_mlp_clean", "sam_every_k", 0.125, seed, 0.3, 0.2, 5e-4)
    return run._replace(**changes)


def test_report(tmp_path):
    accuracies = {("sgd", 0): 70, ("sam", 1): 80, ("budgeted_sam", 0.125): 79}
    rows = [
        row_of(a_run(seed, method=method, share=share, workload=workload), accuracy + seed)
        for workload in ("m1d_mlp_clean", "fmnist_mlp_noisy")
        for (method, share), accuracy in accuracies.items()
        for seed in range(3)
    ]
    rows.append(row_of(a_run(0, method="looksam"), 70))  # on one workload only: no mean
    sgd, sam, ours, looksam = report.summarize(rows)
    assert sgd.mean_gap == (0, 0)
    assert sam.mean_gap == (100, 0)
    assert ours.mean_gap.mean == pytest.approx(90)
    assert ours.accuracies["m1d_mlp_clean"] == pytest.approx((80, 1 / math.sqrt(3)))
    assert math.isnan(looksam.mean_gap.mean)
    assert ours.costs["peak_bytes"] == 1

    rows += [row | {"method": "reuse: none"} for row in rows if row["method"] == "budgeted_sam"]
    # The other protocol has no ablations, and does not take the place of those of this one.
    tuned = [row | {"stage": "tuned"} for row in rows if row["method"] != "reuse: none"]
    tuned += [row | {"share": 1 / 16} for row in tuned if row["method"] == "budgeted_sam"]
    written = report.write([*rows, *tuned], tmp_path / "t.csv", ablations=["reuse: none"])
    assert [path.name for path in written] == [
        *("t.png", "t_ablations.png", "t_tuned.png", "t.md"),
    ]
    text = written[-1].read_text()
    assert "90.0 ± 0.0" in text
    assert text.count("`reuse: none`") == 1


def test_a_collapse_is_bounded_in_the_mean():
    accuracies = {("sgd", 0): 74, ("sam", 1): 75, ("esam", 0.5): 10}
    rows = [
        row_of(a_run(seed, method=method, share=share), accuracy)
        | {"top_hessian_eigenvalue": math.nan if method == "esam" else 1}
        for (method, share), accuracy in accuracies.items()
        for seed in range(2)
    ]
    esam = report.summarize(rows)[-1]
    assert esam.gaps["m1d_mlp_clean"].mean == pytest.approx(-6400)
    assert esam.mean_gap.mean == FLOOR
    assert math.isnan(esam.costs["top_hessian_eigenvalue"])


def test_report_of_nothing(tmp_path):
    assert report.write([], tmp_path / "frontier.csv") == []
