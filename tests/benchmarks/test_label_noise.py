"""The protocol of the label-noise benchmark, on fake runs, and that the config files follow it."""

import dataclasses
import math
from pathlib import Path

import pytest

from benchmarks import label_noise
from benchmarks.label_noise import CONFIGS, TUNING_SEEDS, VARIANTS, Options, Setting, Variant
from examples.classification import settings

BEST = Setting(0.0, 0.05, 0.0079)
COMMITTED = Path(label_noise.__file__).with_name("label_noise.csv")


def row_of(run, accuracy=50.0):
    of_results = dict.fromkeys(label_noise.RESULTS, 1.0) | {"steps": 10, "accuracy": accuracy}
    return run._asdict() | of_results | {"date": "today", "device": "cpu", "versions": "a, b"}


def fake_train(runs):
    """Best at a learning rate of 0.05, α 0.4 and 10 steps; 10 better with SAM than with SGD."""
    for run in runs:
        away = abs(math.log(run.learning_rate / BEST.learning_rate))
        away += abs(run.alpha - 0.4) + abs(run.segment_length - 10) / 10
        gain = 10 if run.method == "sam" else 0
        yield row_of(run, 60 - 5 * away + gain + run.seed % 2 - 40 * run.noise)


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(label_noise, "train", fake_train)
    return Options(csv=tmp_path / "label_noise.csv", datasets=("digits",), seeds=(0, 1))


def test_search_is_the_same_for_sgd_and_sam():
    drawn = label_noise.candidates(8)
    assert label_noise.candidates(6) == drawn[:6]
    for setting in drawn:
        assert 0.1 <= setting.rho <= 0.8
        assert 0.005 <= setting.learning_rate <= 0.2
        assert 3e-4 <= setting.weight_decay <= 2e-2
    sgd, sam = (label_noise.tried(Options(), "digits", method, {}) for method in ("sgd", "sam"))
    assert [s[1:] for s in sgd] == [s[1:] for s in sam]


def test_search_never_sees_the_test_set_or_reporting_seeds(options):
    with pytest.raises(SystemExit, match="for the search"):
        Options(seeds=(1, TUNING_SEEDS[0]))
    runs = label_noise.tuning_runs(options, "digits", "sgd", BEST)
    assert tuple(run.seed for run in runs) == TUNING_SEEDS
    assert all(label_noise.to_config(run).validation > 0 for run in runs)
    run = runs[0]._replace(stage="run")
    assert label_noise.to_config(run).validation == 0


def test_whole_protocol(options, monkeypatch):
    label_noise.main(options)
    done = label_noise.read_rows(options.csv)
    assert label_noise.chosen(options, "digits", "arsam", done)[1:] == (0.05, 0.0079, 0.4, 10)
    lines = {line.name: line for line in label_noise.summarize(options, "digits", done)}
    assert list(lines) == list(VARIANTS)
    for name, line in lines.items():
        is_control = "80 %" in VARIANTS[name].settings
        assert list(line.accuracies) == ([0.8] if is_control else [0.2, 0.4, 0.6, 0.8])
    assert lines["SGD"].differences[0.2] == pytest.approx((-10, 0))
    assert lines["SAM"].differences[0.8] == (0, 0)
    assert lines["SGD, searched at 80 %"].accuracies[0.8].mean == pytest.approx(21.5)
    assert options.csv.with_suffix(".md").exists()
    assert options.csv.with_suffix(".png").exists()

    def forbidden(runs):
        raise AssertionError(f"{runs} were done again")

    monkeypatch.setattr(label_noise, "train", forbidden)
    label_noise.main(options)


def test_goes_on_where_it_was_interrupted(options, monkeypatch):
    runs = [
        label_noise.make_run(options, "run", "digits", Variant("sgd", "sgd"), BEST, rate, seed)
        for rate in options.rates
        for seed in options.seeds
    ]
    trained = []

    def stopped_train(of_group):
        for row in fake_train(of_group):
            if len(trained) == 3:
                raise KeyboardInterrupt
            trained.append(row)
            yield row

    monkeypatch.setattr(label_noise, "train", stopped_train)
    with pytest.raises(KeyboardInterrupt):
        label_noise.run_all(runs, options, "some")
    with options.csv.open("a") as file:
        file.write("run,digits,cut")
    trained.clear()
    monkeypatch.setattr(
        label_noise, "train", lambda group: (trained.append(r) or r for r in fake_train(group))
    )
    done = label_noise.run_all(runs, options, "some")
    assert len(trained) == len(runs) - 3
    assert list(done) == runs
    assert "cut" not in options.csv.read_text()


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
        return [dict.fromkeys(label_noise.RESULTS, 0.5)]

    monkeypatch.setattr(label_noise, "Trainer", Trainer)
    monkeypatch.setattr(label_noise.loop, "train", train)
    monkeypatch.setattr(label_noise, "load", lambda *args: None)
    where = Options(), "run", "digits", Variant("sgd", "sgd"), BEST
    runs = [label_noise.make_run(*where, rate, 3) for rate in (0.2, 0.8)]
    rows = list(label_noise.train(runs))
    assert seen == ["trainer", "step", (0.2, 3), (0.8, 3)]
    assert [row["noise"] for row in rows] == [0.2, 0.8]
    assert rows[0]["accuracy"] == 50


def test_paired_difference():
    difference = label_noise.paired_difference([73, 75, 74], [70, 71, 72])
    assert difference == pytest.approx((3, 1 / math.sqrt(3)))


def test_published_curves_are_those_of_table_5():
    curves = label_noise.published()
    assert list(curves["SGD"].values()) == [85.94, 70.25, 48.50, 28.91]
    assert list(curves["SAM"].values()) == [90.44, 79.71, 67.22, 76.94]
    assert list(curves["ARSAM"].values()) == [92.27, 89.08, 77.67, 77.93]


@pytest.mark.parametrize("dataset", CONFIGS)
def test_config_files_hold_what_the_search_found(dataset):
    done = label_noise.read_rows(COMMITTED)
    found = label_noise.chosen(Options(), dataset, "arsam", done)
    config = settings.parse(["--config", f"{dataset}_noise"])
    assert found == tuple(getattr(config, name) for name in Setting._fields)
    assert dataclasses.replace(CONFIGS[dataset], config=config.config) == config
