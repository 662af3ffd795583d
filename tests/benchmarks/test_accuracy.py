"""How good is it: the data of a run, the list of methods, and the tables."""

import jax
import numpy as np
import pytest

import arsam_jax
from arsam_jax.methods import METHODS as LIBRARY
from benchmarks.accuracy import __main__ as program
from benchmarks.accuracy import report, study
from benchmarks.accuracy.methods import METHODS, Context
from benchmarks.accuracy.networks import MLP
from benchmarks.accuracy.study import Options
from benchmarks.accuracy.tasks import Setting, Source, Task, make_data
from benchmarks.accuracy.training import train
from tests.benchmarks.test_harness import PROVENANCE

CENTER = Setting(rho=0.1, learning_rate=0.1, weight_decay=1e-3)


def examples(first, count):
    """Examples that are known by their first number, which also gives the label."""
    x = np.random.default_rng(first).normal(size=(count, 4)).astype(np.float32)
    x[:, 0] = np.arange(first, first + count)
    return x, np.arange(count, dtype=np.int32) % 10


@pytest.fixture
def test_reads():
    """A list that grows when the test set of ``tiny`` is read."""
    return []


@pytest.fixture
def tiny(test_reads):
    """A task of three batches."""

    def test_set():
        test_reads.append(1)
        return examples(1000, 50)

    return Task(
        "tiny",
        source=Source(lambda: examples(0, 300), test_set),
        network=MLP((4,)),
        noise=0.4,
        num_train=200,
        num_validation=80,
        epochs=1,
        setting=CENTER,
    )


def test_validation_examples_are_held_out_and_clean(tiny, test_reads):
    data, again = (make_data(tiny, 100, "validation") for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, data, again)
    assert not test_reads
    kept, held_out = set(data.x[:, 0]), set(data.held_out_x[:, 0])
    assert len(kept) == 200
    assert len(held_out) == 80
    assert not kept & held_out
    np.testing.assert_array_equal(data.held_out_labels, data.held_out_x[:, 0] % 10)


def test_noise_is_symmetric_and_the_test_set_clean(tiny):
    data = make_data(tiny._replace(num_train=300), 0, "test")
    np.testing.assert_array_equal(data.held_out_x[:, 0], np.arange(1000, 1050))
    np.testing.assert_array_equal(data.held_out_labels, data.held_out_x[:, 0] % 10)
    shift = (data.labels - data.x[:, 0].astype(int)) % 10
    assert 0.3 < (shift != 0).mean() < 0.5
    assert set(shift) == set(range(10))


@pytest.mark.usefixtures("standard_promotion")
def test_runs_are_reproducible_and_counted(tiny, test_reads):
    result = train(tiny, "budgeted_sam", 1 / 4, CENTER, 100, "validation")
    assert not test_reads
    assert result == train(tiny, "budgeted_sam", 1 / 4, CENTER, 100, "validation")
    assert result != train(tiny, "budgeted_sam", 1 / 4, CENTER, 101, "validation")
    assert result.sampled_share == pytest.approx(1 / 3)  # 1 of 3 steps


@pytest.mark.long
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_at_its_cost(name, tiny):
    method = METHODS[name]
    value = method.values[-1]
    result = train(tiny._replace(epochs=4), name, value, CENTER, 0, "validation")
    assert np.isfinite(result.train_loss)
    cost = method.cost(result.sampled_share, value)
    known = LIBRARY[name].gradients if name in LIBRARY else None
    if "share" in method.hyperparameter and known == 2 and name != "ae_sam":
        assert cost == pytest.approx(1 + value, abs=0.2)
    elif known is not None and not method.hyperparameter:
        assert cost == known


def test_every_method_of_the_library_is_compared():
    """Only usam, ASAM without its normalization, and methods for language models have no row."""
    for_language = {"directed_sam", "masked_sam", "preconditioned_sam", "stabilized_sam"}
    assert set(LIBRARY) - set(METHODS) == {"usam", *for_language}


def test_every_method_can_be_made(tiny):
    params = {"w": np.zeros(3, np.float32)}
    for method in METHODS.values():
        for value in method.values:
            task = method.change(tiny, value)
            base = arsam_jax.sharpness_aware(0)  # stands for the base optimizer
            tx = method.make(Context(0.1, value, 100, 0, base, lambda step: 0.1, task))
            assert jax.eval_shape(tx.init, params) is not None
            assert 1 / 4 <= method.cost(1.0, value) <= 4


def row(task, method, value, seed, score, gradients):
    identity = {"task": task, "method": method, "value": value, "seed": seed}
    settings = {"rho": 0.1, "learning_rate": 0.1, "weight_decay": 0.0}
    return identity | settings | {"score": score, "gradients_per_step": gradients} | PROVENANCE


def test_lines_are_means_over_the_tasks_on_which_sam_helps():
    rows = []
    for task, gain in {"tabular": 4.0, "regression": 8.0, "language": 0.0}.items():
        for seed in range(3):
            score = 50.0 + seed
            rows.append(row(task, "base", 0, seed, score, 1))
            rows.append(row(task, "sam", 0, seed, score + gain + 0.1 * (seed == 1), 2))
            rows.append(row(task, "budgeted_sam", 0.25, seed, score + gain / 2, 1.25))
            rows.append(row(task, "looksam", gain, seed, score - gain, 1.25))
    lines = {line.method: line for line in report.lines_of(rows)}
    own = lines["budgeted_sam"]
    assert set(own.fractions) == {"tabular", "regression"}
    assert own.fractions["tabular"].mean == pytest.approx(100 * 2 / (4 + 0.1 / 3))
    assert own.differences["regression"] == pytest.approx((4, 0))
    assert own.scores["language"].mean == 51
    assert own.value == "0.25"
    assert own.gradients == 1.25
    assert lines["looksam"].value == "searched"
    (words,) = (x for x in report._summary([own]).splitlines() if "budgeted" in x)
    assert "| 54.00 ± 0.41 [1.00] | 3.00 ± 0.00 [1.00] |" in words


def test_options_are_checked():
    with pytest.raises(SystemExit, match="--list: 'all' is not one of held-out, development"):
        Options(list="all")
    with pytest.raises(SystemExit, match="--tasks: 'tiny' is not one of"):
        Options(tasks=("tiny",))
    with pytest.raises(SystemExit, match="at least two seeds"):
        Options(seeds=(0,))


def test_values_are_searched_where_sam_helps_and_reported_once(tmp_path, monkeypatch):
    """The protocol on runs that are not trained. SAM helps on ``tabular`` alone."""

    def execute(run):
        score = 50.0 + run.seed % 3
        score += 4.0 * (run.method != "base" and run.task == "tabular")
        score -= abs(run.value - 0.4) if run.method == "looksam" else 0
        measured = {"score": score, "gradients_per_step": 1.0, "train_loss": 0.0}
        return run._asdict() | measured | PROVENANCE

    monkeypatch.setattr(study, "STUDY", study.STUDY._replace(execute=execute))
    options = Options(
        csv=tmp_path / "accuracy.csv",
        tasks=("tabular", "regression"),
        methods=("looksam",),
        seeds=(0, 1, 2),
        workers=0,
    )
    program._run(options)
    done = study.search.read_rows(options.csv, study.Run)
    reported = {(run.task, run.method, run.value) for run in done if run.stage == "run"}
    references = {(task, name, 0) for task in options.tasks for name in ("base", "sam")}
    assert reported == references | {("tabular", "looksam", 0.4)}
    searched = {run.seed for run in done if run.stage == "tune"}
    assert searched == set(study.TUNING_SEEDS)
