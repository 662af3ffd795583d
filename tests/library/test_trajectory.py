"""SAF and MESA: the loss term and the logit memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arsam_jax.trajectory import LogitMemory, mesa_loss, trajectory_loss
from tests.reference import trajectory_term

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("temperature", "strength"), [(5.0, 0.3), (1.0, 2.0)])
def test_the_term_is_the_divergence_from_the_past(temperature, strength):
    past, now = RNG.normal(size=(2, 7, 4)) * 3
    term = trajectory_loss(
        jnp.asarray(past), jnp.asarray(now), temperature=temperature, strength=strength
    )
    np.testing.assert_allclose(term, strength * trajectory_term(past, now, temperature), rtol=1e-4)
    assert trajectory_loss(jnp.asarray(now), jnp.asarray(now)) == pytest.approx(0, abs=1e-6)


def test_no_gradient_flows_into_the_past():
    past, now = (jnp.asarray(x) for x in RNG.normal(size=(2, 7, 4)))
    into_past, into_now = jax.grad(trajectory_loss, argnums=(0, 1))(past, now)
    assert (into_past == 0).all()
    assert (into_now != 0).any()


def test_large_logits_give_no_nan():
    past, now = jnp.array([[1e4, -1e4]]), jnp.array([[-1e4, 1e4]])
    assert jnp.isfinite(trajectory_loss(past, now))
    assert jnp.isfinite(jax.grad(lambda z: trajectory_loss(past, z))(now)).all()


def test_classes_that_are_masked_out_give_no_nan():
    logits = jnp.array([[0.0, 1.0, -jnp.inf]])
    assert trajectory_loss(logits, logits) == 0
    assert trajectory_loss(logits, 2 * logits) > 0


def test_the_memory_compares_with_the_same_example_of_lag_epochs_ago():
    lag, examples, classes, epochs = 2, 6, 3, 7
    outputs = RNG.normal(size=(epochs, examples, classes))
    memory = LogitMemory.create(examples, classes, lag=lag)
    step = jax.jit(
        lambda memory, index, epoch, logits: (
            memory.loss(index, epoch, logits, start_epoch=4),
            memory.write(index, epoch, logits),
        ),
        donate_argnums=0,
    )
    for epoch in range(epochs):
        for batch in RNG.permutation(examples).reshape(2, 3):
            logits = jnp.asarray(outputs[epoch, batch], jnp.float32)
            term, memory = step(memory, jnp.asarray(batch), jnp.int32(epoch), logits)
            expected = 0.3 * trajectory_term(
                outputs[epoch - lag, batch], outputs[epoch, batch], 5.0
            )
            np.testing.assert_allclose(term, expected if epoch > 4 else 0, rtol=1e-3, atol=1e-7)


def test_nothing_is_asked_of_a_memory_that_is_not_full():
    memory = LogitMemory.create(4, 3, lag=3)
    index = jnp.arange(4)
    for epoch in range(3):
        assert memory.loss(index, epoch, jnp.ones((4, 3)), start_epoch=0) == 0


def test_an_example_that_was_never_kept_adds_nothing():
    memory = LogitMemory.create(4, 3, lag=1)
    past, now = (jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32) for _ in range(2))
    memory = memory.write(jnp.array([0, 2]), 6, past[jnp.array([0, 2])])

    def loss(logits):
        return memory.loss(jnp.arange(4), 7, logits)

    expected = 0.3 * trajectory_term(np.asarray(past)[[0, 2]], np.asarray(now)[[0, 2]], 5.0) / 2
    np.testing.assert_allclose(loss(now), expected, rtol=1e-3)
    sizes = jnp.abs(jax.grad(loss)(now)).max(axis=1)
    assert (sizes[jnp.array([1, 3])] < 1e-6).all()
    assert (sizes[jnp.array([0, 2])] > 1e-3).all()


def test_the_memory_costs_what_it_says():
    memory = LogitMemory.create(50_000, 10)
    assert memory.logits.nbytes == 3 * 50_000 * 10 * 4
    assert memory.is_kept.nbytes == 3 * 50_000
    assert LogitMemory.create(50_000, 10, dtype=jnp.bfloat16).logits.nbytes == 3 * 50_000 * 10 * 2


@pytest.mark.parametrize(
    ("term", "strength", "end"),
    [
        (lambda past, now, epoch: _full(past).loss(jnp.arange(7), epoch, now), 0.3, 300),
        (mesa_loss, 0.8, 360),
    ],
    ids=["saf", "mesa"],
)
def test_the_defaults_are_those_of_the_authors(term, strength, end):
    past, now = (jnp.asarray(x, jnp.float32) for x in RNG.normal(size=(2, 7, 4)) * 3)
    expected = strength * trajectory_term(np.asarray(past), np.asarray(now), 5.0)
    for epoch, is_on in ((0, False), (5, False), (6, True), (end - 1, True), (end, False)):
        np.testing.assert_allclose(term(past, now, epoch), expected * is_on, rtol=1e-4)


def _full(past):
    memory = LogitMemory.create(*past.shape, lag=3)
    for epoch in range(3):
        memory = memory.write(jnp.arange(len(past)), epoch, past)
    return memory


@pytest.mark.parametrize("jit", [jax.jit, lambda fn: fn], ids=["jit", "eager"])
def test_nothing_is_nan_on_the_way(jit):
    """Neither what is not kept yet nor a class that is masked out."""
    with jax.debug_nans(True):
        memory = LogitMemory.create(4, 3, lag=1)
        index = jnp.array([0, 2])
        logits = jnp.array([[0.0, 1.0, -jnp.inf]] * 4)
        memory = jit(LogitMemory.write)(memory, index, 6, logits[index])
        loss = jit(jax.value_and_grad(lambda z: memory.loss(jnp.arange(4), 7, z)))
        assert loss(2 * logits)[0] > 0


def test_logits_that_are_nan_are_not_kept():
    memory = _full(jnp.ones((2, 3)))
    memory = memory.write(jnp.arange(2), 6, jnp.array([[jnp.nan, 0, 0], [0, 0, 0]]))
    np.testing.assert_array_equal(memory.is_kept[0], [False, True])
    assert jnp.isfinite(memory.loss(jnp.arange(2), 9, jnp.eye(3)[:2]))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: trajectory_loss(jnp.ones((2, 3)), jnp.ones((2, 3)), temperature=0), "temperature"),
        (lambda: trajectory_loss(jnp.ones((2, 3)), jnp.ones((2, 3)), strength=-1), "strength"),
        (lambda: trajectory_loss(jnp.ones((2, 4)), jnp.ones((2, 3))), "past_logits"),
        (lambda: mesa_loss(jnp.ones((2, 3)), jnp.ones((2, 3)), 7, end_epoch=-1), "end_epoch"),
        (lambda: LogitMemory.create(0, 3), "num_examples"),
        (lambda: LogitMemory.create(3, 3, lag=0), "lag"),
        (lambda: LogitMemory.create(3, 3, dtype=jnp.int8), "dtype"),
        (lambda: LogitMemory.create(3, 3, dtype=jnp.float8_e4m3fn), "dtype"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, name):
    with pytest.raises(ValueError, match=f"^{name} must .*got"):
        call()
