"""The search: what it tries, what it does again, and in which processes."""

import math
import types
from typing import NamedTuple

import pytest

from benchmarks.harness import search
from benchmarks.harness.search import Options
from tests.benchmarks import fakes
from tests.benchmarks.fakes import Run

RUNS = [Run("tune", "sam", 1.0, seed) for seed in range(3)] + [Run("tune", "sgd", 0.0, 0)]


def test_candidates_stay_in_their_ranges_and_grow_by_their_end():
    ranges = [(0.1, 0.4), (1e-3, 1.0)]
    found = search.candidates(ranges, 40, bases=(2, 3), digits=4)
    assert search.candidates(ranges, 7, bases=(2, 3), digits=4) == found[:7]
    for (low, high), values in zip(ranges, zip(*found, strict=True), strict=True):
        assert low <= min(values) < max(values) <= high
        places = [math.log(value / low) / math.log(high / low) for value in values]
        assert sum(places) / len(places) == pytest.approx(1 / 2, abs=0.05)
    assert len(set(map(tuple, found))) == 40


def test_the_best_has_the_highest_mean_and_is_the_earlier_of_equals():
    def runs_of(share):
        return [Run("tune", "sam", share, seed) for seed in (0, 1)]

    accuracies = {1.0: (50, 60), 2.0: (70, 50), 3.0: (80, 40), 4.0: (0, 100)}
    done = {
        run: {"accuracy": accuracy}
        for share, of_seeds in accuracies.items()
        for run, accuracy in zip(runs_of(share), of_seeds, strict=True)
    }
    assert search.best(list(accuracies), runs_of, done) == 2.0
    del done[Run("tune", "sam", 4.0, 1)]
    with pytest.raises(SystemExit, match="1 runs are missing"):
        search.best(list(accuracies), runs_of, done)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_is_never_done_again(tmp_path, workers):
    options = Options(tmp_path / "deep" / "rows.csv", workers)
    with pytest.raises(RuntimeError, match="interrupted"):
        search.run_all(RUNS[:3], fakes.study(fakes.failing), options)
    assert set(search.read_rows(options.csv, Run)) == {RUNS[0]}
    with options.csv.open("a") as file:
        file.write("tune,cut")
    done = search.run_all([*RUNS, RUNS[0]], fakes.study(fakes.execute), options)
    assert set(done) == set(RUNS)
    assert done[RUNS[2]]["accuracy"] == 53
    text = options.csv.read_text()
    assert search.run_all(RUNS, fakes.study(fakes.forbidden), options) == done
    assert options.csv.read_text() == text
    assert len(text.splitlines()) == 1 + len(RUNS)


def test_runs_of_a_group_follow_one_another_in_order(tmp_path):
    order = []

    def execute(run):
        order.append(run)
        return fakes.execute(run)

    search.run_all(RUNS, fakes.study(execute), Options(tmp_path / "rows.csv", workers=0))
    assert order == RUNS


def test_options_are_checked(tmp_path):
    with pytest.raises(SystemExit, match="--workers: -1 is below 0"):
        Options(tmp_path, workers=-1)
    with pytest.raises(SystemExit, match="--workers: 'x' is none of a, b"):
        search.check_names(types.SimpleNamespace(workers=("a", "x")), workers=("a", "b"))


class Setting(NamedTuple):
    rate: float
    rho: float


def test_climbing_ends_where_no_neighbour_is_better():
    asked = []
    peaks = {"near": (0, 0), "far": (3, -1)}

    def scores_of(tried):
        asked.append(tried)
        return [
            math.nan
            if s.rate > 8
            else -abs(math.log2(s.rate) - peaks[name][0]) - abs(math.log2(s.rho) - peaks[name][1])
            for name, s in tried
        ]

    def neighbours(setting):
        return search.scaled(setting, ("rate", "rho"))

    found = search.climb(dict.fromkeys(peaks, Setting(1.0, 1.0)), neighbours, scores_of)
    assert found == {"near": Setting(1.0, 1.0), "far": Setting(8.0, 0.5)}
    around = [Setting(16.0, 0.5), Setting(4.0, 0.5), Setting(8.0, 1.0), Setting(8.0, 0.25)]
    assert {("far", setting) for setting in around} <= {*asked[-1]}
    assert {name for name, _ in asked[0]} == {*peaks}
    assert {name for name, _ in asked[1]} == {"far"}


def test_a_climb_without_a_number_ends_the_program():
    with pytest.raises(SystemExit, match="tabular: no run gave a number"):
        search.climb({"tabular": Setting(1.0, 1.0)}, lambda s: [], lambda tried: [math.nan])


def test_a_field_that_is_not_named_stays():
    assert search.scaled(Setting(1.0, 3.0), ("rate",)) == [
        Setting(0.5, 3.0),
        Setting(2.0, 3.0),
    ]
