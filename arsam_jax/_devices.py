"""Mapped axes and sharded arrays: what a step needs to know of the devices it runs on."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


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


def local_parts(x: Any) -> list[np.ndarray]:
    """What the devices of this process hold of an array; a NumPy array is returned as it is."""
    if not isinstance(x, jax.Array):
        return [np.asarray(x)]
    return [np.asarray(shard.data) for shard in x.addressable_shards]
