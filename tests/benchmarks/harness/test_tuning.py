"""The search that every method gets."""

from benchmarks.harness import search, tuning
from benchmarks.harness.table import RESULTS
from benchmarks.harness.tuning import Run
from benchmarks.harness.workloads import WORKLOADS
from tests.benchmarks.conftest import CENTER, row_of


def test_search_stays_in_its_range_and_grows_by_its_end():
    settings = tuning.candidates(CENTER, 40)
    assert settings[0] == CENTER
    assert tuning.candidates(CENTER, 7) == settings[:7]
    for (low, high), center, values in zip(
        tuning.RANGES, CENTER, zip(*settings, strict=True), strict=True
    ):
        assert low * center * 0.99 < min(values) < center < max(values) < high * center * 1.01


def test_best_setting_is_that_of_the_highest_mean(tiny):
    point = ("tiny", "sam", 1)
    runs = tuning.tuning_runs(point, 4)
    scores = [50, 60, 70, 50, 80, 51, 65, 65]  # two seeds a setting; means 55, 60, 65.5, 65
    done = {run: row_of(run, score) for run, score in zip(runs, scores, strict=True)}
    assert tuning.best_setting(point, 4, done) == tuning.candidates(CENTER, 4)[2]
    assert tuning.best_setting(point, 1, {}) == CENTER


def test_the_search_that_is_kept_is_this_one():
    """Draws or reads of the file that changed would search SAM's settings anew."""
    done = search.read_rows(RESULTS / "frontier" / "frontier.csv", Run)
    for workload in WORKLOADS:
        assert done.keys() >= set(tuning.tuning_runs((workload, "sam", 1), tuning.DRAWS))
