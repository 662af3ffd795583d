"""``decouple``: what sharpness adds goes past the base optimizer."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import arsam_jax
from tests import least_squares, reference
from tests.problem import loss_fn, make_batch, make_params, make_step, train

BASE = optax.sgd(0.05, momentum=0.9)


def rate(step):
    return 0.05 / (1.0 + jnp.asarray(step, jnp.float32))


def test_wsam_of_its_authors(x64):
    """Momentum sees g alone; then the parameters move by −η α (g_A − g), α = γ / (1 − γ)."""
    tx = arsam_jax.decouple(arsam_jax.wsam(0.3, 0.8), optax.sgd(rate, momentum=0.9), rate)
    expected = reference.decoupled_wsam(0.3, 0.8, momentum=0.9)
    w = np.random.default_rng(1).normal(size=least_squares.SIZE)
    state = tx.init(least_squares.make_params(w))

    @jax.jit
    def update(params, state, batch):
        grad_fn = least_squares.grad_fn_of(batch)
        return tx.update(grad_fn(params), state, params, grad_fn=grad_fn)

    for i in range(40):
        batch = least_squares.draw_batch(i)
        updates, state = update(least_squares.split(w), state, batch)
        step = expected(w, batch, float(rate(i)))
        np.testing.assert_allclose(least_squares.join(updates), step, rtol=1e-6, atol=1e-9)
        w = w + step
    assert arsam_jax.get_metrics(state).num_sampled == 40


def test_without_momentum_it_is_the_coupled_form():
    link, base = arsam_jax.wsam(0.1, 0.6), optax.sgd(0.05)
    decoupled, _ = train(arsam_jax.decouple(link, base, 0.05), 20)
    coupled, _ = train(optax.chain(link, base), 20)
    chex.assert_trees_all_close(decoupled, coupled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("link", "learning_rate"),
    [
        (arsam_jax.wsam(0.0), 0.05),
        (arsam_jax.wsam(0.1, 0.0), 0.05),
        (arsam_jax.wsam(0.1), 0.0),
        (arsam_jax.wsam(lambda step: 0.0 * step.astype(jnp.float32)), 0.05),
    ],
    ids=["rho_0", "gamma_0", "rate_0", "schedule_0"],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_nothing_to_add_gives_the_updates_of_the_base_optimizer_bit_for_bit(
    link, learning_rate, dtype
):
    tx, params = arsam_jax.decouple(link, BASE, learning_rate), jnp.ones(50, dtype)
    update = jax.jit(lambda g, s: tx.update(g, s, params, grad_fn=jnp.sin))
    state, base_state = tx.init(params), BASE.init(params)
    for i in range(4):
        grads = jnp.asarray(np.random.default_rng(i).normal(size=50), dtype)
        updates, state = update(grads, state)
        expected, base_state = jax.jit(BASE.update)(grads, base_state)
        chex.assert_trees_all_equal(updates, expected)
        chex.assert_trees_all_equal_dtypes(updates, expected)


def test_any_link_in_scan_and_in_the_loop():
    tx = arsam_jax.decouple(arsam_jax.arsam(0.1, 0.5, segment_length=4), BASE, rate)
    batches = jax.tree.map(lambda *x: jnp.stack(x), *map(make_batch, range(8)))
    params = make_params()
    step = make_step(tx)
    scanned, _ = jax.lax.scan(
        lambda carry, batch: (step(*carry, batch), None), (params, tx.init(params)), batches
    )
    chex.assert_trees_all_close(scanned, train(tx, 8), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_difference_of_low_precision_gradients_is_taken_in_float32(dtype):
    """In the dtype of the parameters a difference of 2⁻¹² of the gradient would be rounded off."""
    params = jnp.ones(2, dtype)
    tx = arsam_jax.decouple(arsam_jax.sam(0.1), optax.set_to_zero(), 1.0)
    updates, _ = tx.update(
        params, tx.init(params), params, grad_fn=lambda w: jnp.full_like(w, 1 + 2.0**-12)
    )
    assert updates.dtype == dtype
    np.testing.assert_array_equal(np.asarray(updates, np.float32), -(2.0**-12))


def test_executed_gradients_are_those_of_the_link():
    executed = []
    tx = arsam_jax.decouple(arsam_jax.sam_every_k(0.1, 3), BASE, rate)
    step = jax.jit(make_step(tx, on_gradient=lambda: executed.append(1)))
    _, state = train(tx, 12, step=step)
    jax.block_until_ready(state)
    jax.effects_barrier()
    assert len(executed) == arsam_jax.get_metrics(state).num_sampled == 4


def test_a_bad_perturbed_gradient_reaches_the_base_optimizer_and_no_buffer_of_the_link():
    base = optax.apply_if_finite(BASE, 5)
    tx = arsam_jax.decouple(arsam_jax.arsam(0.1, 0.5, warmup_steps=9), base, 0.05)
    params = jnp.ones(3)
    state: Any = tx.init(params)
    _, state = tx.update(params, state, params, grad_fn=lambda w: w)
    after: Any
    updates, after = tx.update(params, state, params, grad_fn=lambda w: w * jnp.nan)
    chex.assert_trees_all_equal(updates, jnp.zeros(3))
    assert after.base.notfinite_count == 1
    chex.assert_trees_all_equal(after.transformation.correction, state.transformation.correction)
    chex.assert_trees_all_equal(after.base.inner_state, state.base.inner_state)

    plain = arsam_jax.decouple(arsam_jax.sam(0.1), BASE, 0.05)
    updates, _ = plain.update(params, plain.init(params), params, grad_fn=lambda w: w * jnp.nan)
    assert jnp.isnan(updates).all()


def test_an_injected_learning_rate():
    link = arsam_jax.wsam(0.1, 0.6)
    injected = optax.inject_hyperparams(arsam_jax.decouple)(link, BASE, learning_rate=0.05)
    params, state = train(injected, 8)
    assert float(state.hyperparams["learning_rate"]) == pytest.approx(0.05)
    expected, _ = train(arsam_jax.decouple(link, BASE, 0.05), 8)
    chex.assert_trees_all_close(params, expected, rtol=1e-5, atol=1e-6)


def test_bad_arguments_are_refused_by_name():
    sam = arsam_jax.sam(0.1)
    with pytest.raises(
        TypeError, match=r"^transformation must be an optax\.GradientTransformation, got 3"
    ):
        arsam_jax.decouple(3, BASE, 0.1)
    with pytest.raises(TypeError, match=r"^base must be an optax\.GradientTransformation, got "):
        arsam_jax.decouple(sam, optax.sgd, 0.1)
    for value in (-0.1, np.nan, None):
        with pytest.raises((TypeError, ValueError), match=r"^learning_rate must be .*, got "):
            arsam_jax.decouple(sam, BASE, value)
    with pytest.raises(
        ValueError, match=r"^transformation must hold one sharpness-aware transformation"
    ):
        arsam_jax.decouple(optax.identity(), BASE, 0.1).init(make_params())
    tx = arsam_jax.decouple(sam, BASE, 0.1)
    params = make_params()
    with pytest.raises(ValueError, match="needs grad_fn"):
        tx.update(jax.grad(loss_fn)(params, make_batch(0)), tx.init(params), params)
