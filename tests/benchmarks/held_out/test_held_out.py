"""The study of the held-out workloads: its search on fake runs, its workloads, and its report."""

import math

import jax
import numpy as np
import pytest

from benchmarks.harness import search, tuning
from benchmarks.harness import workloads as harness
from benchmarks.harness.methods import METHODS as KNOWN
from benchmarks.harness.networks import MLP
from benchmarks.harness.statistics import Estimate
from benchmarks.harness.training import train
from benchmarks.harness.tuning import Run
from benchmarks.harness.workloads import Setting, Source, Workload, make_data
from benchmarks.held_out import __main__ as program
from benchmarks.held_out import report, study
from benchmarks.held_out.study import METHODS, Options
from benchmarks.held_out.workloads import NUMBERS, WORKLOADS
from tests.benchmarks.conftest import row_of

NAMES = ("regression", "tabular")
WITHOUT_GAIN = "diabetes"


def fake_run(run):
    """SGD best at 4 √2 times its learning rate, SAM at that and twice its ρ; SAM gains 10."""
    start = WORKLOADS[run.workload].setting
    score = 50 - 5 * abs(math.log2(run.learning_rate / start.learning_rate) - 2.5)
    score -= 5 * abs(math.log2(run.weight_decay / start.weight_decay))
    if run.method != "sgd" and run.workload != WITHOUT_GAIN:
        score += 10 - 5 * abs(math.log2(run.rho / start.rho) - 1)
    if run.method == "sam_every_k":
        score -= 5 if run.workload == NAMES[0] else 10
    if run.learning_rate > 6 * start.learning_rate:
        score = math.nan
    return row_of(run, score + run.seed % 3)


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(program.study, "STUDY", study.STUDY._replace(execute=fake_run))
    return Options(
        tmp_path / "held_out.csv",
        workers=0,
        workloads=(*NAMES, WITHOUT_GAIN),
        methods=("sam_every_k",),
        seeds=(0, 1),
    )


def test_zero_is_the_best_sgd_and_others_have_the_setting_of_sam(options):
    program.main(options)
    done = search.read_rows(options.csv, Run)
    for name in NAMES:
        start = WORKLOADS[name].setting
        best = {"learning_rate": 2**2.5 * start.learning_rate, "weight_decay": start.weight_decay}
        reported = {run.method: run[5:] for run in done if run[:2] == ("run", name)}
        assert reported == {
            "sgd": pytest.approx(Setting(0.0, **best), rel=1e-5),
            "sam": pytest.approx(Setting(2 * start.rho, **best), rel=1e-5),
            "sam_every_k": pytest.approx(Setting(2 * start.rho, **best), rel=1e-5),
        }
    assert {run.seed for run in done if run.stage == "tune"} == {*study.TUNING_SEEDS}
    assert {run.method for run in done if run.stage == "tune"} == {"sgd", "sam"}
    text = options.csv.with_suffix(".md").read_text()
    assert {run.method for run in done if run[:2] == ("run", WITHOUT_GAIN)} == {"sgd", "sam"}
    (row,) = (line.split(" | ") for line in text.split("\n") if "not counted" in line)
    assert row[:6] == [f"| {WITHOUT_GAIN}", "0.0566", "0.0005", "0.0566", "0.0005", "0.1"]
    norm = report.length_of_weights(WORKLOADS[WITHOUT_GAIN])
    assert row[6:] == [f"{0.1 / norm:.4f}", "0.00 ± 0.00, not counted |"]
    assert "| sam_every_k | 1/8 | 2 | 1.000 | 25 | 0 | 25 | 25 | 0 |" in text
    assert options.csv.with_suffix(".png").exists()


def test_what_carries_a_claim_has_all_seeds_and_is_compared_with_its_own():
    setting = {"tabular": Setting(0.1, 0.1, 0.1)}
    options = Options(seeds=tuple(range(12)), workloads=("tabular",))
    methods = ("sgd", "sam", "budgeted_sam", "sam_every_k")
    runs = study.reporting_runs(options, methods, setting, setting)
    assert {run.method for run in runs if run.seed == 11} == {"sgd", "sam", "budgeted_sam"}
    scores = {"sgd": 0.0, "sam": 10.0, "budgeted_sam": 5.0, "sam_every_k": 5.0}
    # SAM gains twice as much with the seeds that the last one has not.
    done = {
        run: row_of(run, scores[run.method] * (2 if run.method == "sam" and run.seed > 9 else 1))
        for run in runs
    }
    found = {(line.method, line.share): line for line in report.lines(runs, done)}
    assert found["sam_every_k", 1 / 8].gaps["tabular"].mean == pytest.approx(50)
    assert found["sam_every_k", 1 / 8].seeds == 10
    assert found["budgeted_sam", 1 / 4].gaps["tabular"].mean == pytest.approx(500 / (140 / 12))
    assert found["budgeted_sam", 1 / 4].seeds == 12


def test_a_share_of_no_gain_is_not_taken():
    assert not report.is_gain(Estimate(1.0, 0.6))
    assert report.is_gain(Estimate(1.0, 0.4))


def test_a_collapse_counts_as_the_floor():
    gaps = {"a": Estimate(100.0, 3.0), "b": Estimate(-900.0, 80.0)}
    assert report.mean_gap(gaps) == (0.0, 1.5, 100.0)
    assert report.mean_gap(gaps | {"b": Estimate(math.nan, math.nan)}) == (0.0, 1.5, 100.0)


def pictures_of_noise(split):
    """In place of Fashion-MNIST, whose files a machine may lack."""
    seed, count = {"train": (0, 5000), "test": (1, 1000)}[split]
    x = np.random.default_rng(seed).normal(size=(count, 28, 28, 1)).astype(np.float32)
    return x, np.arange(count, dtype=np.int32) % 10


@pytest.mark.parametrize("name", WORKLOADS)
def test_parts_of_a_workload_are_apart(name, monkeypatch):
    monkeypatch.setattr(harness, "_fashion_mnist_part", pictures_of_noise)
    workload = WORKLOADS[name]
    data = make_data(workload, 100, "validation")
    assert len(data.x) == workload.num_train
    assert len(data.held_out_x) == workload.num_validation
    test_x, test_labels = workload.source.test()
    assert len(test_x) == len(test_labels)
    kinds = data.x, data.held_out_x, test_x
    train_rows, held_rows, test_rows = ({x.tobytes() for x in part} for part in kinds)
    # Texts say things twice, how often depends on the Python that ships them.
    texts = {"language": 0.02, "text_classes": 0.01, "little_text": 0.04}
    common = texts.get(name, 0) * len(train_rows)
    assert len(train_rows & held_rows) <= common
    assert len(train_rows & test_rows) <= common
    assert len(held_rows & test_rows) <= common
    if workload.pretraining:
        before = make_data(workload.pretraining, 100, "validation").x
        forwards = {x.tobytes() for x in np.ascontiguousarray(before[:, ::-1])}
        assert not (forwards | {x.tobytes() for x in before}) & (held_rows | test_rows)
    shapes = {(x.shape[1:], x.dtype) for x in kinds}
    assert len(shapes) == 1


@pytest.mark.usefixtures("standard_promotion")
def test_regression_augmentation_and_pretraining_train():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)).astype(np.float32)
    targets = (x @ np.array([1.0, -2.0, 0.5], np.float32)).astype(np.float32)
    source = Source(lambda: (x[:300], targets[:300]), lambda: (x[300:], targets[300:]))
    base = Workload(
        source=source,
        network=MLP((16,), outputs=1),
        noise=0.0,
        num_train=200,
        num_validation=80,
        epochs=8,
        setting=Setting(0.05, 0.02, 0.0),
        seconds=1,
        batch_size=20,
        objective=NUMBERS,
        schedule="stable",
    )

    def score(workload, seed=0):
        sgd = KNOWN["sgd"]
        return train(workload, sgd.make, 0, workload.setting, seed, "validation").accuracy

    alone = score(base)
    assert 70 < alone < 100
    assert score(base) == alone
    short = base._replace(epochs=1)
    assert score(short._replace(pretraining=base)) > score(short) + 20
    blind = base._replace(augment=lambda key, x: jax.random.permutation(key, x))
    assert score(blind) < 20


@pytest.mark.parametrize("name", METHODS)
def test_methods_train_at_their_price(name, tiny):
    method = METHODS[name]
    for share in method.shares:
        run = Run("run", "tiny", name, share, 0, *tiny.setting)
        workload = method.change(tiny._replace(epochs=4), share)
        row = tuning.train_row(run, workload, method.make, method.cost, "validation")
        assert np.isfinite(row["train_loss"])
        if name not in ("arsam", "arsam_segments_of_8", "ae_sam", "esam"):  # told no share of steps
            expected = method.cost(share, share)
            assert row["gradients_per_step"] == pytest.approx(expected, abs=2 / row["steps"])


def test_wrong_options_end_the_program():
    with pytest.raises(SystemExit, match="tuning seeds"):
        Options(seeds=(0, 100))
    with pytest.raises(SystemExit, match="too few"):
        Options(seeds=(0,))
    with pytest.raises(SystemExit, match="vision"):
        Options(workloads=("vision",))
