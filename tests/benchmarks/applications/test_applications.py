"""The study of the applications: its search on fake runs, one real run, and its report."""

import math
from pathlib import Path

import pytest

from benchmarks.applications import __main__ as program
from benchmarks.applications import study
from benchmarks.applications.study import APPLICATIONS, Options, Run
from benchmarks.harness import search
from tests.benchmarks.fakes import PROVENANCE

LANGUAGE = APPLICATIONS["language"]
START = study.start("language")


def fake_run(run):
    """Least loss at 4 times the learning rate and at a quarter of ρ; 1 lower with SAM.

    ARSAM's best learning rate is half of SAM's.
    """
    best = 1 if run.method == "arsam" else 2
    away = abs(math.log2(run.learning_rate / START.learning_rate) - best)
    if run.rho:
        away += abs(math.log2(run.rho / START.rho) + 2) - 1
    loss = 3 + away + run.seed % 2 + (0.5 if run.stage == "run" else 0)
    if run.rho > START.rho:
        loss = math.nan
    values = dict.fromkeys((*study.RESULTS, *LANGUAGE.measures), 1.0) | {"loss": loss}
    return run._asdict() | values | PROVENANCE


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "STUDY", study.STUDY._replace(execute=fake_run))
    return Options(folder=tmp_path, seeds=(0, 1), workers=0)


def test_search_goes_on_until_no_neighbour_is_better(options, monkeypatch):
    program.main(options)
    done = search.read_rows(options.results.csv, Run)
    tried = {run[2:5] for run in done if run.stage == "search"}
    best = START.learning_rate * 4, START.rho / 4
    for factor in (0.5, 1, 2):
        assert ("base", best[0] * factor, 0) in tried
        assert ("sam", best[0] * factor, best[1]) in tried
        assert ("sam", best[0], best[1] * factor) in tried
    reported = {run[2:5] for run in done if run.stage == "run"}
    assert reported == {
        ("base", best[0], 0),
        ("sam", *best),
        ("arsam", best[0] / 2, best[1]),
        ("budgeted_sam", *best),
    }
    assert {run.rho for run in done if run.method == "arsam"} == {best[1]}
    for run in done:
        assert (run.seed in options.tuning_seeds) == (run.stage == "search")
        assert study.to_options(run).validation == (run.stage == "search")

    def forbidden(run):
        raise AssertionError(f"{run} was done again")

    monkeypatch.setattr(program, "STUDY", study.STUDY._replace(execute=forbidden))
    program.main(options)


def test_report_has_the_differences_of_pairs_and_the_best_setting_first(options):
    program.main(options)
    text = (options.folder / "language.md").read_text()
    sam, base = (
        next(line for line in text.splitlines() if line.startswith(f"| {method} "))
        for method in ("sam", "base")
    )
    assert base.split(" | ")[3:5] == ["4.000 ± 0.500", ""]
    assert sam.split(" | ")[3:5] == ["3.000 ± 0.500", "-1.000 ± 0.000"]
    searched = text.split("The search")[1]
    first = next(line for line in searched.splitlines() if line.startswith("| sam "))
    assert f"| {START.rho / 4:g} | 2.333 ± 0.333 |" in first
    assert (options.folder / "language.png").exists()


@pytest.mark.parametrize("name", APPLICATIONS)
def test_settings_of_a_run_are_the_defaults_but_for_what_is_searched(name):
    run, application = Run("run", name, "sam", 0.5, 0.25, 3), APPLICATIONS[name]
    given = study.to_options(run)
    assert (given.learning_rate, given.rho, given.validation) == (0.5, 0.25, False)
    assert given.batch_size == application.options().batch_size
    base = study.to_options(run._replace(method="base", rho=0.0))
    assert base.rho == application.options().rho
    # A network that a program trains first is of other data in the search, and of this process.
    assert study.to_options(run._replace(stage="search")).folder != given.folder == base.folder
    assert not given.folder.is_relative_to(Path.cwd())


def test_only_sam_searches_its_radius():
    assert study.searched("sam") == ("learning_rate", "rho")
    assert study.searched("base") == study.searched("arsam") == ("learning_rate",)


@pytest.mark.usefixtures("standard_promotion")
def test_a_run_trains_and_has_all_measures(monkeypatch, tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(b"the quick brown fox jumps over the lazy dog. " * 1000)
    tiny = {"width": 16, "depth": 1, "heads": 2, "length": 32, "fine_tuning_steps": 2}

    def options():
        return LANGUAGE.options(text=text, other_text=text, epochs=1, batch_size=64, **tiny)

    monkeypatch.setitem(APPLICATIONS, "language", LANGUAGE._replace(options=options))
    row = study.execute(Run("search", "language", "arsam", 0.001, 0.05, 100))
    assert row.keys() >= {*Run._fields, *LANGUAGE.measures, *study.RESULTS, "commit"}
    assert 0 < row["loss"] < 9
    assert row["steps"] > 0


def test_wrong_names_and_seeds_of_the_search_end_the_program():
    with pytest.raises(SystemExit, match="'vision' is none of language"):
        Options(application="vision")
    with pytest.raises(SystemExit, match="'adam' is none of base"):
        Options(methods=("adam",))
    with pytest.raises(SystemExit, match="search alone"):
        Options(seeds=(0, 100))
