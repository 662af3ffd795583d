"""The protocol of the label-noise benchmark, on fake runs, and that the config files follow it."""

import dataclasses
import math

import pytest

from benchmarks.harness import search
from benchmarks.label_noise import __main__ as program
from benchmarks.label_noise import report, study
from benchmarks.label_noise.study import (
    CONFIGS,
    TUNING_SEEDS,
    VARIANTS,
    Options,
    Run,
    Setting,
    Variant,
)
from examples.classification import settings
from tests.benchmarks.fakes import PROVENANCE

BEST = Setting(0.0, 0.05, 0.0079)


def fake_run(run):
    """Best at a learning rate of 0.05, α 0.4 and 10 steps; 10 better with SAM than with SGD."""
    away = abs(math.log(run.learning_rate / BEST.learning_rate))
    away += abs(run.alpha - 0.4) + abs(run.segment_length - 10) / 10
    gain = 10 if run.method == "sam" else 0
    accuracy = 60 - 5 * away + gain + run.seed % 2 - 40 * run.noise
    results = dict.fromkeys(study.RESULTS, 1.0) | {"steps": 10, "accuracy": accuracy}
    return run._asdict() | results | PROVENANCE


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "STUDY", study.STUDY._replace(execute=fake_run))
    csv = tmp_path / "label_noise.csv"
    return Options(csv=csv, datasets=("digits",), seeds=(0, 1), workers=0)


def test_search_is_the_same_for_sgd_and_sam():
    drawn = study.candidates(8)
    assert study.candidates(6) == drawn[:6]
    for setting in drawn:
        assert 0.1 <= setting.rho <= 0.8
        assert 0.005 <= setting.learning_rate <= 0.2
        assert 3e-4 <= setting.weight_decay <= 2e-2
    sgd, sam = (study.tried(Options(), "digits", method, {}) for method in ("sgd", "sam"))
    assert [s[1:] for s in sgd] == [s[1:] for s in sam]


def test_search_never_sees_the_test_set_or_reporting_seeds(options):
    with pytest.raises(SystemExit, match="for the search"):
        Options(seeds=(1, TUNING_SEEDS[0]))
    runs = study.tuning_runs(options, "digits", "sgd", BEST)
    assert tuple(run.seed for run in runs) == TUNING_SEEDS
    assert all(study.to_config(run).validation > 0 for run in runs)
    run = runs[0]._replace(stage="run")
    assert study.to_config(run).validation == 0


def test_whole_protocol(options, monkeypatch):
    program.main(options)
    done = search.read_rows(options.csv, Run)
    assert study.chosen(options, "digits", "arsam", done)[1:] == (0.05, 0.0079, 0.4, 10)
    lines = {line.name: line for line in report.summarize(options, "digits", done)}
    assert list(lines) == list(VARIANTS)
    for name, line in lines.items():
        is_control = "80 %" in VARIANTS[name].settings
        assert list(line.accuracies) == ([0.8] if is_control else [0.2, 0.4, 0.6, 0.8])
    assert lines["SGD"].differences[0.2] == pytest.approx((-10, 0))
    assert lines["SAM"].differences[0.8] == (0, 0)
    assert lines["SGD, searched at 80 %"].accuracies[0.8].mean == pytest.approx(21.5)
    assert options.csv.with_suffix(".md").exists()
    assert options.csv.with_suffix(".png").exists()

    def forbidden(run):
        raise AssertionError(f"{run} was done again")

    monkeypatch.setattr(program, "STUDY", study.STUDY._replace(execute=forbidden))
    program.main(options)


def test_runs_of_a_line_are_one_group():
    """Which is compiled once."""
    where = Options(), "run", "digits", Variant("sgd", "sgd"), BEST
    groups = {
        study.group(study.make_run(*where, rate, seed)) for rate in (0.2, 0.8) for seed in (0, 1)
    }
    assert len(groups) == 1
    other = study.make_run(*where[:-1], BEST._replace(alpha=0.1), 0.2, 0)
    assert study.group(other) not in groups


def test_one_compiled_step_sees_the_labels_of_each_rate(monkeypatch):
    seen = []

    class Trainer:
        def __init__(self, config, dataset):
            self.config = config
            seen.append("trainer")

        def compile_step(self, method):
            seen.append("step")

    def train(trainer, step, method, seeds, folder):
        seen.append((trainer.config.label_noise, *seeds))
        return [dict.fromkeys(study.RESULTS, 0.5)]

    monkeypatch.setattr(study, "Trainer", Trainer)
    monkeypatch.setattr(study.loop, "train", train)
    monkeypatch.setattr(study, "load", lambda *args: None)
    where = Options(), "run", "digits", Variant("sgd", "sgd"), BEST
    rows = [study.execute(study.make_run(*where, rate, 3)) for rate in (0.2, 0.8)]
    study._compiled.cache_clear()
    assert seen == ["trainer", "step", (0.2, 3), (0.8, 3)]
    assert [row["noise"] for row in rows] == [0.2, 0.8]
    assert rows[0]["accuracy"] == 50
    assert set(rows[0]) == {*Run._fields, *study.RESULTS, *PROVENANCE}


def test_paired_difference():
    difference = report.paired_difference([73, 75, 74], [70, 71, 72])
    assert difference == pytest.approx((3, 1 / math.sqrt(3)))


def test_published_curves_are_those_of_table_5():
    curves = report.published()
    assert list(curves["SGD"].values()) == [85.94, 70.25, 48.50, 28.91]
    assert list(curves["SAM"].values()) == [90.44, 79.71, 67.22, 76.94]
    assert list(curves["ARSAM"].values()) == [92.27, 89.08, 77.67, 77.93]


@pytest.mark.parametrize("dataset", CONFIGS)
def test_config_files_hold_what_the_search_found(dataset):
    done = search.read_rows(Options().csv, Run)
    found = study.chosen(Options(), dataset, "arsam", done)
    config = settings.parse(["--config", f"{dataset}_noise"])
    assert found == tuple(getattr(config, name) for name in Setting._fields)
    assert dataclasses.replace(CONFIGS[dataset], config=config.config) == config
