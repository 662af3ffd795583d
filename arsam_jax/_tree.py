"""Pytree arithmetic that is safe in every dtype: at least float32, no division by zero."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp


def gradient(loss_fn: Callable[[Any], jax.Array]) -> Callable[[Any], Any]:
    """``jax.grad``, conjugated where complex: the direction of steepest ascent, as in optax."""
    return lambda params: jax.tree.map(jnp.conj, jax.grad(loss_fn)(params))


def wide_dtype(x: chex.Array) -> Any:
    """The dtype in which ``x`` is measured and perturbed: its own, but at least float32."""
    dtype = jnp.asarray(x).dtype
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def strong(tree: Any) -> Any:
    """The arrays of ``tree`` without JAX's weak types, which would differ between branches."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)


def widen(tree: Any) -> Any:
    """Casts bfloat16 and float16 leaves to float32, leaves every other one as it is."""
    return jax.tree.map(lambda x: jnp.asarray(x, wide_dtype(x)), tree)


def cast_like(tree: Any, like: Any) -> Any:
    """Casts each leaf of ``tree`` to the dtype of the same leaf of ``like``."""
    return jax.tree.map(lambda x, y: jnp.asarray(x).astype(jnp.result_type(y)), tree, like)


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
    dtype = jnp.float64 if any(p.dtype == jnp.float64 for p in products) else jnp.float32
    return sum((p.astype(dtype) for p in products), start=jnp.zeros([], dtype))


def norm(tree: Any) -> jax.Array:
    """Euclidean norm over all leaves, accumulated in at least float32; its derivative at 0 is 0."""
    return _root(dot(tree, tree))


@jax.custom_jvp
def _root(square):
    """A square root alone: what else read the sum would have XLA add it up anew for each leaf."""
    return jnp.sqrt(square)


@_root.defjvp
def _root_jvp(primals, tangents):
    root = _root(*primals)
    return root, tangents[0] * safe_divide(jnp.asarray(0.5, root.dtype), root)


def narrow_leaves(tree: Any, norm: jax.Array) -> list[jax.Array]:
    """The leaves whose dtype can overflow on numbers that have a norm like this one, finite."""

    def can_overflow(dtype):
        is_inexact = jnp.issubdtype(dtype, jnp.inexact)  # twice: the norm squares
        return is_inexact and 2 * jnp.finfo(dtype).maxexp < jnp.finfo(norm.dtype).maxexp

    return [x for x in jax.tree.leaves(tree) if can_overflow(jnp.result_type(x))]


def is_finite(tree: Any) -> jax.Array:
    """Whether every number in the tree is finite, bool scalar."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)] or [True]))


def safe_divide(numerator: chex.Numeric, denominator: chex.Numeric) -> jax.Array:
    """``numerator / denominator``, and 0 where the denominator is 0."""
    is_zero = jnp.equal(denominator, 0)
    return jnp.where(is_zero, 0, numerator / jnp.where(is_zero, 1, denominator))


def mean_over(axis_name: Any, tree: Any) -> Any:
    """The mean over the devices of a mapped axis; ``tree`` itself without one."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def local_to(axis_name: Any, tree: Any) -> Any:
    """``tree`` as values of each device, so that a gradient with respect to it stays local.

    Inside ``jax.shard_map`` the gradient with respect to a replicated value is summed over the
    devices by default. Elsewhere, in ``pmap`` and ``vmap``, this does nothing.
    """
    unseen = unseen_axes(axis_name)
    names = tuple(axis for axis in axes(axis_name) if axis not in unseen)

    def vary(x):
        missing = tuple(axis for axis in names if axis not in varying_axes(x))
        if not missing:
            return x
        if hasattr(jax.lax, "pcast"):
            return jax.lax.pcast(x, missing, to="varying")
        return jax.lax.pvary(x, missing)  # pyright: ignore  # of older versions

    return jax.tree.map(vary, tree)


def gathered(axis_name: Any, tree: Any) -> Any:
    """The rows of each leaf on all devices, one after another and the same on every device."""

    def gather(x):
        for axis in axes(axis_name):
            is_own = jnp.arange(jax.lax.psum(1, axis), dtype=jnp.int32) == jax.lax.axis_index(axis)
            rows = jnp.where(is_own.reshape(-1, *[1] * x.ndim), x[None], 0)
            x = jax.lax.psum(rows, axis).reshape(-1, *x.shape[1:])
        return x

    return jax.tree.map(gather, tree)


def local_key(axis_name: Any, key: jax.Array) -> jax.Array:
    """A key of each device's own; ``key`` itself without a mapped axis."""
    for axis in axes(axis_name):
        key = jax.random.fold_in(key, jax.lax.axis_index(axis))
    return key


def varying_axes(x: Any) -> frozenset:
    """The mapped axes over which ``shard_map`` knows ``x`` to vary.

    None are known in ``pmap`` and ``vmap``, nor in ``shard_map(check_vma=False)``.
    """
    aval = jax.typeof(x)
    manual = getattr(aval, "manual_axis_type", None)
    return getattr(aval, "vma", frozenset()) if manual is None else manual.varying


def not_varying(axis_name: Any, x: Any) -> tuple:
    """Those of the mapped axes over which ``x`` is known to be the same."""
    unknown = (*varying_axes(x), *unseen_axes(axis_name))
    return tuple(axis for axis in axes(axis_name) if axis not in unknown)


def unseen_axes(axis_name: Any) -> tuple:
    """Those of the mapped axes along which JAX does not keep track of what varies."""
    names = axes(axis_name)
    return tuple(axis for axis in names if not varying_axes(jax.lax.axis_index(axis)))


def axes(axis_name: Any) -> tuple:
    """The names in ``axis_name``: None, one, or a tuple of them."""
    return () if axis_name is None else axis_name if isinstance(axis_name, tuple) else (axis_name,)


def replicated(tree: Any) -> Any:
    """``tree`` with each leaf whole on every device, where a mesh has explicit axes."""
    if not _is_explicit(tree):
        return tree
    spec = jax.sharding.PartitionSpec()
    return jax.tree.map(lambda x: jax.sharding.reshard(x, spec), tree)


def automatic(fn: Callable[..., Any], *args: Any, like: Any) -> Any:
    """``fn(*args)`` with results sharded as ``like``, all shardings inside left to the compiler.

    For operations that refuse some shardings where a mesh has explicit axes.
    """
    if not _is_explicit((args, like)):
        return fn(*args)
    shardings = jax.tree.map(lambda x: jax.typeof(x).sharding, like)
    return jax.sharding.auto_axes(fn, out_sharding=shardings)(*args)


def _is_explicit(tree: Any) -> bool:
    kinds = getattr(jax.sharding, "AxisType", None)
    return kinds is not None and any(
        kinds.Explicit in (jax.typeof(x).sharding.mesh.axis_types or ())
        for x in jax.tree.leaves(tree)
    )


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
