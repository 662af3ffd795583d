"""The protocol of the frontier, on fake runs."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from benchmarks.frontier import __main__ as program
from benchmarks.frontier import study
from benchmarks.frontier.__main__ import Options
from benchmarks.frontier.ablations import ABLATIONS
from benchmarks.harness import search, tuning
from benchmarks.harness.methods import METHODS
from benchmarks.harness.tuning import TUNING_SEEDS
from benchmarks.harness.workloads import WORKLOADS
from tests.benchmarks.conftest import row_of

EVERYTHING = tuple(WORKLOADS), tuple(METHODS)


def test_every_method_gets_the_same_search():
    searches = {}
    points = study.points("tuned", *EVERYTHING)
    for point in points:
        runs = tuning.tuning_runs(point, 5)
        assert {(run.workload, run.method, run.share) for run in runs} == {point}
        tried = [(run.seed, *run[5:]) for run in runs]
        assert len(set(tried)) == 5 * len(TUNING_SEEDS)
        assert searches.setdefault(point[0], tried) == tried
    assert {name for name in METHODS if not METHODS[name].is_between} == {
        method for _, method, _ in points
    }
    assert not set(TUNING_SEEDS) & set(Options().seeds)


def test_only_methods_in_units_of_its_radius_take_over_that_of_sam():
    taken_over = {method for _, method, _ in study.points("transfer", *EVERYTHING)}
    assert set(METHODS) - taken_over == {"asam", "usam"}
    with pytest.raises(SystemExit, match="stage transfer compares none of asam, usam"):
        study.points("transfer", tuple(WORKLOADS), ("asam", "usam"))


def test_ablations_are_not_taken_for_methods():
    asked = {name for _, name, _ in study.points("ablations", *EVERYTHING)}
    assert asked == {"sgd", "sam", "budgeted_sam", "budgeted_sam_rising", *ABLATIONS}
    assert not set(ABLATIONS) & {name for _, name, _ in study.points("transfer", *EVERYTHING)}


def test_points_of_some_shares():
    names = {name for name, _, _ in study.points("transfer", tuple(WORKLOADS), ("arsam",))}
    assert names == set(WORKLOADS)
    chosen = study.points("transfer", tuple(WORKLOADS), ("looksam",), (0.5,))
    assert {p[1:] for p in chosen} == {("sgd", 0), ("sam", 1), ("looksam", 0.5)}


@pytest.mark.parametrize(("stage", "held_out"), [("tune", "validation"), ("transfer", "test")])
def test_the_test_set_is_for_what_is_reported(monkeypatch, stage, held_out):
    calls = []
    monkeypatch.setattr(tuning, "train_row", lambda *arguments: calls.append(arguments))
    run = tuning.Run(stage, "m1d_mlp_clean", "esam", 0.5, 0, 0.1, 0.1, 0.1)
    study.execute(run)
    method = METHODS["esam"]
    workload = WORKLOADS["m1d_mlp_clean"]
    assert calls == [(run, workload, method.make, method.cost, held_out)]


def test_whole_protocol(tmp_path, monkeypatch):
    """The best of the search is what is reported; nothing of it is done twice."""
    executed = []

    def execute(run):
        executed.append(run)
        gain = {"sgd": 0, "sam": 10}.get(run.method, 9)
        return row_of(run, 60 + gain + run.seed % 2 - abs(run.rho - 0.09095))

    monkeypatch.setattr(study, "STUDY", study.STUDY._replace(execute=execute))
    options = Options(
        csv=tmp_path / "frontier.csv",
        workers=0,
        stage="tuned",
        workloads=("fmnist_cnn_clean",),
        methods=("budgeted_sam",),
        shares=(1 / 8,),
        seeds=(0, 1),
    )
    program.main(options)
    assert len(executed) == len(set(executed)) == 3 * (8 * 2 + 2)
    assert {run.rho for run in executed if run.stage == "tuned"} == {0.09095}
    assert (
        "| `budgeted_sam` | 0.125 | 1.000 | 90.0 ± 0.0 |" in (tmp_path / "frontier.md").read_text()
    )
    program.main(options)
    assert len(executed) == len(set(executed))


def test_options_are_checked(tmp_path):
    wrong: list[dict[str, Any]] = [
        {"methods": ("asm",)},
        {"workloads": ("x",)},
        {"draws": 0},
        {"workers": -1},
        {"seeds": (0, 100)},
    ]
    for changes in wrong:
        with pytest.raises(SystemExit):
            Options(**changes)
    assert program.quick(Options()).csv == Path("runs/frontier/quick.csv")
    with pytest.raises(SystemExit, match="has no finished runs"):
        program.main(dataclasses.replace(Options(stage="report"), csv=tmp_path / "none.csv"))
    assert search.read_rows(tmp_path / "none.csv", tuning.Run) == {}
