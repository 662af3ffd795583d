"""What all benchmarks share: the search, the CSV files and the statistics."""

import math
import types
from typing import NamedTuple

import numpy as np
import pytest

from benchmarks import search, statistics, table
from benchmarks.statistics import FLOOR, Estimate, mean_and_error, retained

PROVENANCE = {"date": "today", "commit": "0ddba11", "device": "cpu", "versions": "a, b"}


class Run(NamedTuple):
    stage: str
    method: str
    value: float
    seed: int


def execute(run):
    return run._asdict() | {"score": 50 + run.seed + run.value} | PROVENANCE


def failing(run):
    if run.seed == 1:
        raise RuntimeError("interrupted")
    return execute(run)


def forbidden(run):
    raise AssertionError(f"{run} was repeated")


def study(execute):
    return search.Study(Run, execute, lambda run: run[:3], lambda run: 1.0)


RUNS = [Run("tune", "sam", 1.0, seed) for seed in range(3)] + [Run("tune", "sgd", 0.0, 0)]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_finished_runs_are_never_repeated(tmp_path, workers):
    options = search.Options(tmp_path / "deep" / "rows.csv", workers)
    with pytest.raises(RuntimeError, match="interrupted"):
        search.run_all(RUNS[:3], study(failing), options)
    assert set(search.read_rows(options.csv, Run)) == {RUNS[0]}
    with options.csv.open("a") as file:
        file.write("tune,cut off")
    done = search.run_all([*RUNS, RUNS[0]], study(execute), options)
    assert set(done) == set(RUNS)
    assert done[RUNS[2]]["score"] == 53
    text = options.csv.read_text()
    assert search.run_all(RUNS, study(forbidden), options) == done
    assert options.csv.read_text() == text
    assert len(text.splitlines()) == 1 + len(RUNS)


class Setting(NamedTuple):
    rate: float
    rho: float


def test_search_ends_where_no_neighbour_is_better():
    asked = []
    peaks = {"near": (0, 0), "far": (3, -1)}  # log2 of the best rate and rho

    def score(name, setting):
        if setting.rate > 8:
            return math.nan
        rate, rho = peaks[name]
        return -abs(math.log2(setting.rate) - rate) - abs(math.log2(setting.rho) - rho)

    def scores_of(tried):
        asked.append(tried)
        return [score(*pair) for pair in tried]

    def neighbours(setting):
        return search.scaled(setting, ("rate", "rho"))

    found = search.climb(dict.fromkeys(peaks, Setting(1.0, 1.0)), neighbours, scores_of)
    assert found == {"near": Setting(1.0, 1.0), "far": Setting(8.0, 0.5)}
    around = [Setting(16.0, 0.5), Setting(4.0, 0.5), Setting(8.0, 1.0), Setting(8.0, 0.25)]
    assert {("far", setting) for setting in around} <= {*asked[-1]}
    assert {name for name, _ in asked[1]} == {"far"}
    with pytest.raises(SystemExit, match="tabular: all runs at"):
        search.climb({"tabular": Setting(1.0, 1.0)}, lambda s: [], lambda tried: [math.nan])


def test_options_are_checked(tmp_path):
    with pytest.raises(SystemExit, match="--workers must be at least 0, got -1"):
        search.Options(tmp_path, workers=-1)
    with pytest.raises(SystemExit, match="--methods: 'x' is not one of a, b"):
        search.check_names(types.SimpleNamespace(methods=("a", "x")), methods=("a", "b"))
    with pytest.raises(SystemExit, match="must differ from the seeds of the search"):
        search.check_seeds((0, 1), (1, 2))


def a_row(**values):
    return {"name": "a", "x": 1.0} | PROVENANCE | values


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "rows.csv"
    assert table.read(path) == []
    rows = [a_row(), a_row(name="b, c", x=-2), a_row(x=math.nan, commit="12e3456"), a_row(x=1 / 3)]
    table.append(path, *rows[:2])
    table.append(path, *rows[2:])
    found = table.read(path)
    assert found[:2] == rows[:2]
    assert isinstance(found[1]["x"], int)
    assert math.isnan(found[2]["x"])
    assert found[2]["commit"] == "12e3456"  # not the number 12 · 10³⁴⁵⁶
    assert found[3]["x"] == 0.3333333


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    path = tmp_path / "rows.csv"
    table.append(path, a_row())
    whole = path.read_bytes()
    table.append(path, a_row(name="b"))
    path.write_bytes(path.read_bytes()[:-9])
    assert [row["name"] for row in table.read(path)] == ["a"]
    table.append(path, a_row(name="c"))
    assert [row["name"] for row in table.read(path)] == ["a", "c"]
    assert path.read_bytes().startswith(whole)


def test_rows_have_the_columns_of_their_file(tmp_path):
    path = tmp_path / "rows.csv"
    table.append(path, a_row())
    with pytest.raises(ValueError, match=r"rows\.csv.* differ in the columns y"):
        table.append(path, a_row(y=1))
    assert len(table.read(path)) == 1


def test_fraction_that_is_retained():
    base, sam = [70, 71, 72], [74, 75, 76]
    found = retained([73, 75, 74], base, sam)
    assert found.mean == pytest.approx(100 * 3 / 4)
    # d = 3, 4, 2 and D = 4, 4, 4, so the residuals are 0, 1, -1.
    assert found.error == pytest.approx(100 * (1 / math.sqrt(3)) / 4)
    assert retained(base, base, sam) == (0, 0)
    assert retained(sam, base, sam) == pytest.approx((100, 0))
    assert math.isnan(retained([73], [70], [74]).error)
    assert math.isnan(retained([73, 73], [70, 71], [71, 70]).mean)


def test_error_of_the_fraction_is_that_of_repeated_experiments():
    rng = np.random.default_rng(0)
    fractions, errors = [], []
    for _ in range(2000):
        shared = rng.normal(size=8)
        base, sam, method = (m + shared + 0.5 * rng.normal(size=8) for m in (70, 80, 78))
        found = retained(list(method), list(base), list(sam))
        fractions.append(found.mean)
        errors.append(found.error)
    assert np.mean(errors) == pytest.approx(np.std(fractions), rel=0.1)


def test_a_failure_is_bounded_in_means_over_tasks():
    estimates = [Estimate(-6400, 50), Estimate(80, 3), Estimate(math.nan, 0)]
    assert statistics.floored(estimates) == [FLOOR, 80, FLOOR]


def test_means():
    assert mean_and_error([1, 2, 3]) == pytest.approx((2, 1 / math.sqrt(3)))
    assert f"{mean_and_error([1, 2, 3]):.1f}" == "2.0 ± 0.6"
    assert f"{mean_and_error([1, 2, 3]):+.1f}" == "+2.0 ± 0.6"
    assert f"{mean_and_error([4]):.1f}" == "4.0"
    assert f"{mean_and_error([]):.1f}" == "–"
