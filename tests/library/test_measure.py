"""Sharpness and the top Hessian eigenvalue against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from arsam_jax.measure import sharpness, top_hessian_eigenvalue

RNG = np.random.default_rng(0)


def symmetric(eigenvalues):
    q, _ = np.linalg.qr(RNG.normal(size=(len(eigenvalues),) * 2))
    return jnp.asarray(q @ np.diag(eigenvalues) @ q.T, jnp.float32)


def quadratic(matrix, linear):
    def loss_fn(w):
        return 0.5 * jnp.vdot(w, jnp.dot(matrix, w, precision="highest")) + jnp.vdot(linear, w)

    return loss_fn


@pytest.mark.parametrize(
    "eigenvalues",
    [
        (5.0, 3.0, 1.0, 0.5, 0.0, -1.0),
        (2.0, 1.0, 0.0, 0.0, -9.0),  # the largest, not that of largest magnitude
        (-1.0, -2.0, -3.0),
        (4.0, 4.0, 4.0),  # every vector is an eigenvector
        (7.0,),
        (0.0, 0.0),
        (1e-12, 5e-13, 0.0),
        (3e12, 1e12, 0.0),
    ],
)
@pytest.mark.parametrize("num_iterations", [20, 60])
@pytest.mark.parametrize("start", range(3))
def test_top_eigenvalue_of_a_quadratic(eigenvalues, num_iterations, start):
    loss_fn = quadratic(symmetric(eigenvalues), jnp.ones(len(eigenvalues)))
    w = jnp.asarray(RNG.normal(size=len(eigenvalues)), jnp.float32)
    found = top_hessian_eigenvalue(loss_fn, w, num_iterations=num_iterations, seed=start)
    assert found.dtype == jnp.float32
    scale = max(map(abs, eigenvalues))
    np.testing.assert_allclose(found, max(eigenvalues), rtol=0, atol=3e-5 * scale)


def test_top_eigenvalue_of_a_wide_spectrum():
    eigenvalues = np.concatenate([[100.0, 60.0], np.linspace(0, 10, 198)])
    loss_fn = quadratic(symmetric(eigenvalues), jnp.zeros(200))
    found = top_hessian_eigenvalue(loss_fn, jnp.zeros(200), num_iterations=15)
    np.testing.assert_allclose(found, 100, rtol=1e-4)


def network_loss(params):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(12, 3)), jnp.float32)
    kernel, (bias, scale) = params["kernel"], params["rest"]
    hidden = jnp.tanh(x @ kernel + jnp.broadcast_to(bias, (12, 4)))
    return jnp.square(scale * hidden.sum(1) - jnp.sin(x.sum(1))).mean()


def network_params(dtype=jnp.float32):
    rng = np.random.default_rng(2)
    kernel, bias = rng.normal(size=(3, 4)), rng.normal(size=4)
    rest = (jnp.asarray(bias, dtype), jnp.asarray(0.7, dtype))
    return {"kernel": jnp.asarray(kernel, dtype), "rest": rest, "none": None}


def dense_hessian(params):
    flat, unravel = ravel_pytree(params)
    return jax.hessian(lambda flat: network_loss(unravel(flat)))(flat)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_top_eigenvalue_of_a_pytree(transform):
    params = network_params()
    found = transform(lambda p: top_hessian_eigenvalue(network_loss, p, seed=3))(params)
    expected = np.linalg.eigvalsh(np.asarray(dense_hessian(params), np.float64))[-1]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_does_not_depend_on_the_seed_once_converged():
    found = [top_hessian_eigenvalue(network_loss, network_params(), seed=s) for s in range(3)]
    np.testing.assert_allclose(found, found[0], rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_parameters_are_widened(dtype):
    params = network_params(dtype)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    for measured in (
        lambda p: top_hessian_eigenvalue(network_loss, p),
        lambda p: sharpness(network_loss, p, 1e-3),
    ):
        assert measured(params).dtype == jnp.float32
        assert measured(params) == measured(wide)


def test_convolutions():
    x = jnp.asarray(RNG.normal(size=(4, 8, 2)), jnp.float32)

    def loss_fn(kernel):
        y = jax.lax.conv_general_dilated(
            x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return jnp.square(y).mean()

    kernel = jnp.asarray(RNG.normal(size=(3, 2, 2)), jnp.float32)
    hessian = jax.hessian(loss_fn)(kernel).reshape(12, 12)
    found = top_hessian_eigenvalue(loss_fn, kernel)
    np.testing.assert_allclose(found, np.linalg.eigvalsh(hessian)[-1], rtol=1e-4)


def test_sharpness_of_a_quadratic():
    matrix, linear = symmetric((4.0, 2.0, 1.0)), jnp.asarray([1.0, -2.0, 0.5])
    w = jnp.asarray([0.3, 0.1, -0.4])
    g = matrix @ w + linear
    u = g / jnp.linalg.norm(g)
    rho = 0.3
    expected = rho * jnp.linalg.norm(g) + rho**2 / 2 * u @ matrix @ u
    found = jax.jit(lambda rho: sharpness(quadratic(matrix, linear), w, rho))(rho)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_sharpness_of_a_pytree():
    params = network_params()
    grads, unravel = ravel_pytree(jax.grad(network_loss)(params))
    step = unravel(0.1 * grads / jnp.linalg.norm(grads))
    expected = network_loss(jax.tree.map(jnp.add, params, step)) - network_loss(params)
    np.testing.assert_allclose(sharpness(network_loss, params, 0.1), expected, rtol=1e-5)


def test_sharpness_is_zero_without_radius_or_gradient():
    w = jnp.asarray([1.0, 2.0])
    assert sharpness(lambda w: jnp.square(w).sum(), w, 0) == 0
    assert sharpness(lambda w: jnp.square(w).sum(), jnp.zeros(2), 0.1) == 0


def test_what_is_not_finite_shows():
    w = jnp.zeros(2)
    assert jnp.isnan(top_hessian_eigenvalue(lambda w: jnp.sqrt(w).sum(), w))
    assert jnp.isnan(sharpness(lambda w: jnp.log(w).sum(), -jnp.ones(2), 0.1))


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"num_iterations": 0}, ValueError, "num_iterations"),
        ({"num_iterations": 2.5}, TypeError, "num_iterations"),
        ({"num_iterations": jnp.array(2)}, TypeError, "num_iterations"),
        ({"seed": -1}, ValueError, "seed"),
        ({"params": {}}, ValueError, "params"),
        ({"params": jnp.arange(3)}, TypeError, "params"),
        ({"params": jnp.ones(3, jnp.complex64)}, TypeError, "params"),
        ({"loss_fn": lambda w: w}, ValueError, "loss_fn"),
        ({"loss_fn": lambda w: (w.sum(), w)}, ValueError, "loss_fn"),
    ],
)
def test_bad_arguments_of_the_eigenvalue(kwargs, error, match):
    with pytest.raises(error, match=match):
        top_hessian_eigenvalue(**({"loss_fn": jnp.sum, "params": jnp.ones(3)} | kwargs))


@pytest.mark.parametrize(
    ("rho", "error"), [(-0.1, ValueError), (float("nan"), ValueError), ("1", TypeError)]
)
def test_bad_radius(rho, error):
    with pytest.raises(error, match="rho"):
        sharpness(jnp.sum, jnp.ones(3), rho)
