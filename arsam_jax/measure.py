"""Sharpness and curvature of a loss, for evaluation only: nothing here belongs in a train step.

A loss is a function ``params -> scalar`` of any pytree of real arrays, with the batch closed over.
bfloat16 and float16 parameters are widened: the loss is called with float32 ones, since a small
step or a second derivative is lost in rounding otherwise. Both functions can be jitted.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from arsam_jax import _check, _random, _tree
from arsam_jax.convolutions import fast_convolutions

__all__ = ["sharpness", "top_hessian_eigenvalue"]


def sharpness(loss_fn: Callable[[Any], Any], params: Any, rho: chex.Numeric) -> jax.Array:
    r"""How much the loss rises along the gradient: :math:`L(w + \rho\, g / \|g\|) - L(w)`.

    To second order :math:`\rho \|g\| + \tfrac{\rho^2}{2}\, g^\top H g / \|g\|^2`, which is at most
    :math:`\rho \|g\| + \tfrac{\rho^2}{2} \lambda_{\max}(H)`. 0 where the gradient is 0. Costs one
    gradient and one forward pass.

    Args:
      loss_fn: L, ``params -> scalar``.
      params: w, any pytree of real arrays.
      rho: ρ >= 0, the radius.

    Returns:
      A scalar, at least float32.

    Raises:
      TypeError, ValueError: for a bad ``rho``, a loss that is no real scalar or params that are
        no real floating point arrays.

    References:
      Foret et al., Sharpness-Aware Minimization (arXiv 2010.01412), equation 2.
    """
    _check.check_number("rho", rho, low=0)
    params, loss_fn = _widen(params, loss_fn)
    loss, grads = jax.value_and_grad(loss_fn)(params)
    factor = _tree.safe_divide(rho, _tree.norm(grads))
    return loss_fn(_tree.add(params, _tree.scale(factor, grads))) - loss


def top_hessian_eigenvalue(
    loss_fn: Callable[[Any], Any], params: Any, *, num_iterations: int = 20, seed: int = 0
) -> jax.Array:
    r"""The largest eigenvalue of the Hessian of the loss, by the Lanczos iteration.

    From a random unit vector :math:`v_1` it takes products :math:`H v_j`, the derivative of the
    gradient along :math:`v_j`, and

    .. math::
        \alpha_j = \langle v_j, H v_j \rangle, \qquad
        \beta_j v_{j+1} = H v_j - \alpha_j v_j - \beta_{j-1} v_{j-1},
        \qquad \|v_{j+1}\| = 1.

    The result is the largest eigenvalue of the tridiagonal matrix of the α and β. It approaches
    :math:`\lambda_{\max}(H)` from below, faster than power iteration, and is the largest one, not
    the one of largest magnitude. Vectors are not reorthogonalised, which repeats eigenvalues that
    have converged but does not move them, so three vectors shaped like the parameters are all it
    keeps. Costs ``num_iterations`` Hessian-vector products of about two gradients each.

    Args:
      loss_fn: L, ``params -> scalar``, twice differentiable: forward over reverse, so a function
        with ``jax.custom_vjp`` inside must allow forward differentiation of its rule.
      params: w, any pytree of real arrays with at least one element.
      num_iterations: >= 1. 20 gives a separated eigenvalue to three digits or more; as many as
        there are distinct eigenvalues give it to rounding.
      seed: of the first vector.

    Returns:
      A scalar, at least float32; NaN where the loss has no finite second derivative.

    Raises:
      TypeError, ValueError: for a bad argument, a loss that is no real scalar or params that are
        no real floating point arrays.

    References:
      Golub and Van Loan, Matrix Computations, chapter 10; Ghorbani et al., An Investigation into
      Neural Net Optimization via Hessian Eigenvalue Density (arXiv 1901.10159).
    """
    _check.check_static("num_iterations", num_iterations)
    _check.check_integer("num_iterations", num_iterations, low=1)
    _check.check_seed(seed)
    params, loss_fn = _widen(params, loss_fn)

    @fast_convolutions
    def hessian_product(vector):
        return jax.jvp(jax.grad(loss_fn), (params,), (vector,))[1]

    def iterate(carry, _):
        previous, vector, beta, largest = carry
        product = hessian_product(vector)
        alpha = _tree.dot(vector, product)
        residual = _tree.subtract(
            _tree.subtract(product, _tree.scale(alpha, vector)), _tree.scale(beta, previous)
        )
        # Beyond an invariant subspace all is rounding, the squares of which may underflow besides.
        largest = jnp.maximum(largest, _tree.norm(product))
        next_beta = _tree.norm(residual)
        next_beta = jnp.where(next_beta > 32 * jnp.finfo(beta.dtype).eps * largest, next_beta, 0)
        following = _tree.scale(_tree.safe_divide(1, next_beta), residual)
        is_alive = beta > 0
        return (vector, following, next_beta, largest), (alpha, next_beta, is_alive)

    first = _random_unit(params, seed)
    zeros = jax.tree.map(jnp.zeros_like, first)
    one = jnp.ones_like(_tree.norm(first))
    _, (alpha, beta, is_alive) = jax.lax.scan(
        iterate, (zeros, first, one, 0 * one), length=num_iterations
    )
    # After β = 0 all that can be reached has been; α_1 <= λ_max fills what is left.
    alpha = jnp.where(jnp.cumprod(is_alive.astype(jnp.int32)) > 0, alpha, alpha[0])
    return jnp.linalg.eigvalsh(jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1))[
        -1
    ]


def _random_unit(params, seed):
    leaves, structure = jax.tree.flatten(params)
    key = jax.random.wrap_key_data(_random.make_key(seed), impl="threefry2x32")
    keys = jax.random.split(key, len(leaves))
    vector = jax.tree.unflatten(
        structure,
        [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)],
    )
    return _tree.scale(1 / _tree.norm(vector), vector)


def _widen(params, loss_fn):
    """Both in at least float32, checked."""
    leaves = jax.tree.leaves(params)
    if not sum(map(jnp.size, leaves)):
        raise ValueError(f"params must hold at least one number, got {params!r}.")
    for leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(f"params must be real floating point arrays, got {leaf!r}.")
    params = _tree.widen(params)
    shape = jax.eval_shape(loss_fn, params)
    is_scalar = hasattr(shape, "dtype") and shape.shape == ()
    if not (is_scalar and jnp.issubdtype(shape.dtype, jnp.floating)):
        raise ValueError(f"loss_fn(params) must be a real scalar, got {shape!r}.")

    def wide_loss_fn(params):
        loss = loss_fn(params)
        return loss.astype(_tree.wide_dtype(loss))

    return params, wide_loss_fn
