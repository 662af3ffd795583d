"""Pytree arithmetic that is safe in every dtype: at least float32, no division by zero."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

RATIO_ROUNDING = 64 * float(jnp.finfo(jnp.float32).eps)
"""‖PSF‖ / ‖g‖ below which the PSF may be the rounding of two evaluations in float32."""


def gradient(loss_fn: Callable[[Any], jax.Array]) -> Callable[[Any], Any]:
    """``jax.grad``, conjugated where complex: the direction of steepest ascent, as in optax."""
    return lambda params: jax.tree.map(jnp.conj, jax.grad(loss_fn)(params))


def wide_dtype(x: chex.Array) -> Any:
    """The dtype in which ``x`` is measured and perturbed: its own, but at least float32."""
    dtype = jnp.asarray(x).dtype
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def scalar_dtype(tree: Any) -> Any:
    """The dtype of norms and inner products: float64 if a leaf has 64 bits per real number."""
    wide = (jnp.float64, jnp.complex128)
    is_wide = any(jnp.result_type(x) in wide for x in jax.tree.leaves(tree))
    return jnp.float64 if is_wide else jnp.float32


def strong(tree: Any) -> Any:
    """The arrays of ``tree`` without JAX's weak types, which would differ between branches."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)


def widen(tree: Any) -> Any:
    """Casts bfloat16 and float16 leaves to float32, leaves every other one as it is."""
    return jax.tree.map(lambda x: jnp.asarray(x, wide_dtype(x)), tree)


def cast_like(tree: Any, like: Any) -> Any:
    """Casts each leaf of ``tree`` to the dtype of the same leaf of ``like``."""
    return jax.tree.map(lambda x, y: jnp.asarray(x).astype(jnp.result_type(y)), tree, like)


def cast_within(tree: Any, like: Any) -> Any:
    """As ``cast_like``, and clips finite numbers to the range of a narrower dtype."""

    def cast(x, y):
        dtype, most = jnp.result_type(y), jnp.finfo(jnp.result_type(y)).max
        if jnp.finfo(x.dtype).max > most:
            x = jnp.clip(x, -jnp.asarray(most, x.dtype), jnp.asarray(most, x.dtype))
        return x.astype(dtype)

    return jax.tree.map(cast, tree, like)


def names(tree: Any) -> list[str]:
    """The path of each leaf, its keys joined by "/"."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]


def scale(factor: chex.Numeric, tree: Any) -> Any:
    """``factor * tree``, in the dtypes of ``tree``."""
    return jax.tree.map(lambda x: jnp.asarray(factor, x.dtype) * x, tree)


def add(a: Any, b: Any) -> Any:
    """``a + b``, in the dtypes of ``a``."""
    return jax.tree.map(lambda x, y: x + y.astype(x.dtype), a, b)


def subtract(a: Any, b: Any) -> Any:
    """``a - b``, in the dtypes of ``a``."""
    return jax.tree.map(lambda x, y: x - y.astype(x.dtype), a, b)


def minus_psf(grads: Any, perturbed_grads: Any) -> Any:
    """−PSF, for norms alone: XLA would give the PSF, where that is kept, a buffer of its own."""
    return subtract(grads, perturbed_grads)


def where(condition: chex.Array, a: Any, b: Any) -> Any:
    """Selects the whole of ``a`` or the whole of ``b`` by one scalar condition."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def dot(a: Any, b: Any) -> jax.Array:
    """Real inner product over all leaves, accumulated in at least float32."""

    def leaf_dot(x, y):
        return jnp.sum(jnp.real(x * jnp.conj(y)))

    products = [
        leaf_dot(x, y)
        for x, y in zip(jax.tree.leaves(widen(a)), jax.tree.leaves(widen(b)), strict=True)
    ]
    dtype = scalar_dtype(products)
    return sum((p.astype(dtype) for p in products), start=jnp.zeros([], dtype))


def norm(tree: Any) -> jax.Array:
    """Euclidean norm over all leaves, accumulated in at least float32; its derivative at 0 is 0."""
    return root(dot(tree, tree))


@jax.custom_jvp
def root(square):
    """A square root alone: what else read the sum would have XLA add it up anew for each leaf."""
    return jnp.sqrt(square)


@root.defjvp
def _root_jvp(primals, tangents):
    value = root(*primals)
    return value, tangents[0] * safe_divide(jnp.asarray(0.5, value.dtype), value)


def is_finite(tree: Any) -> jax.Array:
    """Whether every number in the tree is finite, bool scalar."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)] or [True]))


def safe_divide(numerator: chex.Numeric, denominator: chex.Numeric) -> jax.Array:
    """``numerator / denominator``, and 0 where the denominator is 0."""
    is_zero = jnp.equal(denominator, 0)
    return jnp.where(is_zero, 0, numerator / jnp.where(is_zero, 1, denominator))


@jax.custom_batching.custom_vmap
def any_in_batch(condition: jax.Array) -> jax.Array:
    """A bool scalar; under ``vmap`` whether it holds for any element, as one unbatched value.

    A ``lax.cond`` on the result stays a ``cond`` under ``vmap``. The caller then selects by
    ``condition``.
    """
    return condition


@any_in_batch.def_vmap
def _any_in_batch_vmap(axis_size, in_batched, condition):
    del axis_size
    return any_in_batch(jnp.any(condition, axis=0) if in_batched[0] else condition), False


def reject(a: Any, b: Any) -> Any:
    """The part of ``a`` that is orthogonal to ``b``: a − (⟨a, b⟩ / ‖b‖²) b; ``a`` if b is 0."""
    return subtract(a, scale(safe_divide(dot(a, b), dot(b, b)), b))
