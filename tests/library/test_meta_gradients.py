"""Derivatives of the updates with respect to parameters and hyperparameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arsam_jax
from tests.methods import METHODS, every_method

PARAMS = {"a": jnp.zeros(3), "b": jnp.zeros([])}


def bowl(params, batch):
    """Losses of four examples with their minimum at 0."""
    return batch * (jnp.sum(jnp.square(params["a"])) + jnp.square(params["b"]))


def emitted(tx, params, steps, example_loss_fn=bowl, batch=jnp.arange(1.0, 5.0)):  # noqa: B008
    """The sum of all numbers in ``steps`` updates at the same parameters, and in the last state."""

    def grad_fn(params):
        return jax.grad(lambda params: example_loss_fn(params, batch).mean())(params)

    total, state = jnp.zeros([]), tx.init(params)
    extra = {"grad_fn": grad_fn, "example_loss_fn": example_loss_fn, "batch": batch}
    extra |= {"previous_grad_fn": grad_fn, "example_index": jnp.arange(4), "direction": params}
    for _ in range(steps):
        updates, state = tx.update(grad_fn(params), state, params, **extra)
        total += sum(jnp.sum(u) for u in jax.tree.leaves(updates))
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    return total + sum(jnp.sum(x) for x in floats)


@pytest.mark.parametrize("name", every_method())
def test_derivatives_at_a_gradient_of_zero_are_finite(name):
    def total(params, rho):
        return emitted(METHODS[name].make(rho=rho), params, 2)

    derivatives = jax.jit(jax.grad(total, argnums=(0, 1)))(PARAMS, jnp.float32(0.1))
    for leaf in jax.tree.leaves(derivatives):
        assert jnp.isfinite(leaf).all()


def test_derivatives_elsewhere_are_those_of_the_formula():
    """SAM in a bowl of curvature 2c returns 2c (w + ρ w / ‖w‖)."""
    params = {"a": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array(1.5)}
    w, c = np.array([1.0, -2.0, 0.5, 1.5]), 2.5

    def total(params, rho):
        tx, batch = arsam_jax.sam(rho), jnp.arange(1.0, 5.0)
        grad_fn = jax.grad(lambda params: bowl(params, batch).mean())
        updates, _ = tx.update(grad_fn(params), tx.init(params), params, grad_fn=grad_fn)
        return sum(jnp.sum(u) for u in jax.tree.leaves(updates))

    by_params, by_rho = jax.jit(jax.grad(total, argnums=(0, 1)))(params, jnp.float32(0.3))
    norm = np.linalg.norm(w)
    np.testing.assert_allclose(by_rho, 2 * c * w.sum() / norm, rtol=1e-5)
    expected = 2 * c * (1 + 0.3 / norm - 0.3 * w.sum() * w / norm**3)
    np.testing.assert_allclose([*by_params["a"], by_params["b"]], expected, rtol=1e-5)
