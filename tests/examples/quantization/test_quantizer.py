"""The quantizer: its values, its two derivatives, and its step size, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from examples.quantization.quantizer import (
    Levels,
    initial_step,
    integers,
    levels,
    positive,
    quantize,
)

RNG = np.random.default_rng(0)
V = RNG.normal(size=(40, 5)).astype(np.float32)
COTANGENT = RNG.normal(size=V.shape).astype(np.float32)


def reference(v, s, low, high):
    """v̂, ∂v̂/∂v and ∂v̂/∂s of one number, the last without the gradient scale."""
    ratio = v / s
    if ratio <= low:
        return s * low, 0, low
    if ratio >= high:
        return s * high, 0, high
    return s * np.round(ratio), 1, np.round(ratio) - ratio


def pulled_back(step, own, count=200):
    value, pull_back = jax.vjp(lambda v, s: quantize(v, s, own, count), V, jnp.float32(step))
    return value, *pull_back(COTANGENT)


def test_levels():
    assert levels(4, is_signed=True) == Levels(-8, 7)
    assert levels(4, is_signed=False) == Levels(0, 15)
    assert levels(8, is_signed=True) == Levels(-128, 127)


@pytest.mark.parametrize("is_signed", [True, False])
@pytest.mark.parametrize(("bits", "step"), [(2, 0.4), (4, 0.2), (4, 0.1), (8, 0.01)])
def test_values_and_derivatives_are_those_of_the_formula(bits, step, is_signed):
    own = levels(bits, is_signed=is_signed)
    value, of_v, of_step = pulled_back(step, own)
    rows = np.array([reference(v, np.float32(step), *own) for v in V.ravel()])
    expected, inside, by_step = rows.T.reshape(3, *V.shape)
    assert 0 < inside.sum() < V.size  # some are clipped, some are not
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_array_equal(of_v, COTANGENT * inside)
    scale = 1 / np.sqrt(200 * own.high)
    np.testing.assert_allclose(of_step, scale * (COTANGENT * by_step).sum(), rtol=1e-4)
    np.testing.assert_array_equal(integers(V, jnp.float32(step), own), np.rint(expected / step))


def test_forward_derivatives_are_the_reverse_ones():
    v = jnp.asarray(np.random.default_rng(0).normal(size=12), jnp.float32)
    step, limits = jnp.asarray(0.2), levels(3, is_signed=True)

    def rounded(v, step):
        return quantize(v, step, limits, 12)

    for forward, reverse in zip(
        jax.jacfwd(rounded, (0, 1))(v, step), jax.jacrev(rounded, (0, 1))(v, step), strict=True
    ):
        np.testing.assert_allclose(forward, reverse, rtol=1e-6)


def test_the_initial_step_size():
    own = levels(4, is_signed=True)
    np.testing.assert_allclose(initial_step(V, own), 2 * np.abs(V).mean() / np.sqrt(7), rtol=1e-6)


def test_a_step_size_is_positive_whatever_the_gradient():
    own = levels(4, is_signed=True)
    tx = optax.sgd(1.0)
    step = jnp.float32(0.2)
    state, passed = tx.init(step), 0
    for _ in range(20):  # each update takes off 0.15, past 0
        value, of_v, of_step = pulled_back(step, own)
        assert positive(step) > 0
        assert all(np.isfinite(x).all() for x in (value, of_v, of_step))
        updates, state = tx.update(jnp.float32(0.15), state)
        step = optax.apply_updates(step, updates)
        passed += int(step < 0)
    assert passed > 10
    for zero in (0.0, -0.0, 1e-30):
        assert positive(jnp.float32(zero)) >= np.finfo(np.float32).eps
        assert np.isfinite(pulled_back(zero, own)[0]).all()


def test_a_reflected_step_size_is_the_same_and_goes_on_learning():
    own = levels(4, is_signed=True)
    value, of_v, of_step = pulled_back(0.3, own)
    mirrored = pulled_back(-0.3, own)
    np.testing.assert_array_equal(mirrored[0], value)
    np.testing.assert_array_equal(mirrored[1], of_v)
    assert mirrored[2] == -of_step

    @jax.jit
    def descend(step):
        error = jax.grad(lambda s: jnp.square(quantize(V, s, own, V.size) - V).sum())
        return jax.lax.fori_loop(0, 200, lambda _, s: s - 0.01 * error(s), step)

    ends = [float(positive(descend(jnp.float32(start)))) for start in (0.3, -0.3, -0.05)]
    errors = [np.square(quantize(V, jnp.float32(s), own, V.size) - V).mean() for s in ends]
    assert max(errors) < 0.02  # of variance 1
    assert ends[0] == ends[1]
