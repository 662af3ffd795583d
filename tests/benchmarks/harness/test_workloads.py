"""What a training sees, and that it follows from its seed."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arsam_jax
from benchmarks.harness import training, tuning
from benchmarks.harness.methods import METHODS
from benchmarks.harness.training import snapshots
from benchmarks.harness.tuning import Run
from benchmarks.harness.workloads import make_data
from tests.benchmarks.conftest import CENTER, row_of


def test_validation_is_held_out_and_clean(tiny, test_reads):
    data = make_data(tiny, 100, "validation")
    assert not test_reads
    assert len(data.x) == 200
    assert len(data.held_out_x) == 80
    kept, held_out = set(data.x[:, 0]), set(data.held_out_x[:, 0])
    assert not kept & held_out
    assert kept | held_out <= set(range(300))
    np.testing.assert_array_equal(data.held_out_labels, data.held_out_x[:, 0] % 10)


def test_test_set_is_used_whole_and_noise_is_symmetric(tiny, test_reads):
    data = make_data(tiny._replace(num_train=300), 0, "test")
    assert len(test_reads) == 1
    np.testing.assert_array_equal(data.held_out_x[:, 0], np.arange(1000, 1050))
    shift = (data.labels - data.x[:, 0].astype(int)) % 10
    assert 0.3 < (shift != 0).mean() < 0.5
    assert set(shift) == set(range(10))


def test_data_follow_from_the_seed(tiny):
    first, again, other = (make_data(tiny, seed, "test") for seed in (0, 0, 1))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first.x[:, 0] != other.x[:, 0]).any()


def train(run, workload, held_out):
    method = METHODS[run.method]
    return tuning.train_row(run, workload, method.make, method.cost, held_out)


def test_tuning_never_reads_the_test_set_and_runs_are_reproducible(tiny, test_reads):
    run = Run("tune", "tiny", "sam", 1, 100, *CENTER)
    row = train(run, tiny, "validation")
    assert not test_reads
    assert set(row) == set(row_of(run))
    assert row["gradients_per_step"] == 2
    assert row["steps"] == 3
    again = train(run, tiny, "validation")
    assert (row["accuracy"], row["train_loss"]) == (again["accuracy"], again["train_loss"])
    reported = train(run._replace(stage="transfer", seed=0), tiny, "test")
    assert test_reads
    assert reported["top_hessian_eigenvalue"] > 0


def test_sgd_is_the_base_optimizer_at_its_price(tiny):
    rows = [
        train(Run("tune", "tiny", "sgd", 0, 100, *CENTER._replace(rho=rho)), tiny, "validation")
        for rho in (0.0, 9.0)
    ]
    assert rows[0]["gradients_per_step"] == 1
    assert rows[0]["train_loss"] == rows[1]["train_loss"]


def test_snapshots_are_those_of_one_training(tiny):
    data = make_data(tiny, 3, "validation")

    def at(*steps):
        return snapshots(tiny, lambda rho, *_: arsam_jax.sam(rho), CENTER, 3, data, steps)

    first, second = at(1, 2)
    (alone,) = at(2)
    jax.tree.map(np.testing.assert_array_equal, second, alone)
    with pytest.raises(AssertionError):
        jax.tree.map(np.testing.assert_array_equal, first, second)


def test_the_gradient_of_microbatches_is_that_of_the_batch(tiny):
    run = Run("tune", "tiny", "sam", 1, 100, *CENTER)
    row, other = (
        train(run, tiny._replace(num_microbatches=count), "validation") for count in (1, 4)
    )
    np.testing.assert_allclose(row["train_loss"], other["train_loss"], rtol=1e-5)


def test_what_is_scored_can_be_an_average_of_the_run(tiny):
    run = Run("tune", "tiny", "sgd", 0, 100, *CENTER._replace(learning_rate=1.0))
    shares = 0, 1e-6, 0.9  # of 3 steps
    objective = tiny.objective._replace(score=lambda logits, labels: logits.mean())
    last, short, long = (
        train(run, tiny._replace(averaged=share, objective=objective), "validation")
        for share in shares
    )
    assert last["accuracy"] == short["accuracy"] != long["accuracy"]
    assert last["train_loss"] == short["train_loss"] == long["train_loss"]


def test_swa_averages_the_last_quarter_of_the_epochs(tiny):
    workload = tiny._replace(epochs=8, swa=0.0)
    make_link, data = METHODS["sgd"].make, make_data(workload, 3, "validation")
    order = jnp.asarray(training._order(workload, len(data.x), 3))
    begin, run = training._training(workload, make_link, 0, len(data.x))
    state = begin(training.initial(workload, 3, data), 3, CENTER)
    state, _ = jax.jit(run)(state, 3, CENTER, jnp.asarray(data.x), jnp.asarray(data.labels), order)
    ends = [*snapshots(workload, make_link, CENTER, 3, data, (18, 21, 24))]
    expected = jax.tree.map(lambda *arrays: np.mean(arrays, 0), *ends)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        state.average,
        expected,
    )


def test_statistics_go_over_the_last_epoch(tiny):
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x, train=True):
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)

    workload = tiny._replace(network=Normed())
    data = make_data(workload, 3, "validation")
    variables = training.initial(workload, 3, data)
    order = training._order(workload, len(data.x), 3)
    _, statistics = training._with_statistics(workload, variables, data.x, order)
    mean, variance = np.zeros(4), np.ones(4)
    for indices in order:
        batch = data.x[indices].astype(np.float64)
        mean, variance = 0.9 * mean + 0.1 * batch.mean(0), 0.9 * variance + 0.1 * batch.var(0)
    (of_layer,) = statistics.values()
    np.testing.assert_allclose(of_layer["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(of_layer["var"], variance, rtol=1e-5)


def test_the_schedule_of_swa_ends_where_it_is_told(tiny):
    """SWA begins at 75 of 100 epochs: the rate falls between half and 0.9 of these."""
    schedule = training._schedule(tiny._replace(swa=0.2), 3.0, 1000)
    found = [float(schedule(step)) for step in (0, 375, 525, 675, 999)]
    np.testing.assert_allclose(found, [3.0, 3.0, 1.8, 0.6, 0.6], rtol=1e-5)
    kept, own = (training._schedule(tiny._replace(swa=swa), 3.0, 1000) for swa in (0.0, None))
    assert float(kept(500)) == float(own(500))


def test_every_method_can_be_made_at_every_share():
    for method in METHODS.values():
        for share in method.shares:
            link = method.make(0.1, share, 100, 0)
            link.init({"w": np.zeros(3, np.float32)})
            assert 1 <= method.cost(share, share) <= 3
