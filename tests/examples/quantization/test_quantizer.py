"""The quantizer: its values, its two derivatives, and its step size, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
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
FOUR_BITS = levels(4, is_signed=True)


def pulled_back(step, own=FOUR_BITS):
    value, pull_back = jax.vjp(lambda v, s: quantize(v, s, own, 200), V, jnp.float32(step))
    return value, *pull_back(COTANGENT)


def test_levels_and_initial_step_size():
    assert levels(4, is_signed=True) == Levels(-8, 7)
    assert levels(4, is_signed=False) == Levels(0, 15)
    assert levels(8, is_signed=True) == Levels(-128, 127)
    expected = 2 * np.abs(V).mean() / np.sqrt(7)
    np.testing.assert_allclose(initial_step(V, FOUR_BITS), expected, rtol=1e-6)


@pytest.mark.parametrize("is_signed", [True, False])
@pytest.mark.parametrize(("bits", "step"), [(2, 0.4), (4, 0.1), (8, 0.01)])
def test_values_and_derivatives_are_those_of_the_formula(bits, step, is_signed):
    own = levels(bits, is_signed=is_signed)
    value, of_v, of_step = pulled_back(step, own)
    ratio = V / np.float32(step)
    clipped = np.clip(ratio, *own)
    inside = (ratio > own.low) & (ratio < own.high)
    by_step = np.where(inside, np.round(ratio) - ratio, clipped)
    assert 0 < inside.sum() < V.size  # some are clipped, some are not
    np.testing.assert_allclose(value, np.float32(step) * np.round(clipped), rtol=1e-6)
    np.testing.assert_array_equal(of_v, COTANGENT * inside)
    scale = 1 / np.sqrt(200 * own.high)
    np.testing.assert_allclose(of_step, scale * (COTANGENT * by_step).sum(), rtol=1e-4)
    np.testing.assert_array_equal(integers(V, jnp.float32(step), own), np.rint(clipped))


@pytest.mark.long
def test_forward_derivatives_equal_reverse_derivatives():
    v, step = jnp.asarray(V[0]), jnp.asarray(0.2)
    for forward, reverse in zip(
        jax.jacfwd(quantize, (0, 1))(v, step, FOUR_BITS, 5),
        jax.jacrev(quantize, (0, 1))(v, step, FOUR_BITS, 5),
        strict=True,
    ):
        np.testing.assert_allclose(forward, reverse, rtol=1e-6)


def test_a_step_size_is_positive_and_finite_even_at_zero():
    for parameter in (0.0, -0.0, 1e-30, -1e-30, -0.1):
        assert positive(jnp.float32(parameter)) >= np.finfo(np.float32).eps
        assert all(np.isfinite(x).all() for x in pulled_back(parameter))


def test_a_reflected_step_size_is_the_same_and_continues_to_learn():
    value, of_v, of_step = pulled_back(0.3)
    mirrored = pulled_back(-0.3)
    np.testing.assert_array_equal(mirrored[0], value)
    np.testing.assert_array_equal(mirrored[1], of_v)
    assert mirrored[2] == -of_step

    @jax.jit
    def descend(step):
        error = jax.grad(lambda s: jnp.square(quantize(V, s, FOUR_BITS, V.size) - V).sum())
        return jax.lax.fori_loop(0, 200, lambda _, s: s - 0.01 * error(s), step)

    ends = [float(positive(descend(jnp.float32(start)))) for start in (0.3, -0.3, -0.05)]
    errors = [np.square(quantize(V, jnp.float32(s), FOUR_BITS, V.size) - V).mean() for s in ends]
    assert max(errors) < 0.02  # The variance is 1.
    assert ends[0] == ends[1]
