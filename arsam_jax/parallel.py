"""Many devices: gradients averaged over a mapped axis, and a check before the first step.

Under ``jit`` with sharded arrays the averaging is not needed, because a mean over the batch is a
mean over all devices.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from arsam_jax import _devices
from arsam_jax._devices import local_parts
from arsam_jax.state import get_state


def value_and_grad(
    loss_fn: Callable[..., Any], axis_name: Any, *, has_aux: bool = False
) -> Callable[..., Any]:
    r"""``jax.value_and_grad`` of the mean loss over devices, :math:`\frac1N \sum_i L_i(w)`.

    Written manually, this goes wrong without an error. Inside ``jax.shard_map`` with its default
    ``check_vma=True`` the gradient with respect to replicated parameters is already a sum over the
    devices, so ``pmean(grad(loss))`` is N times too large. ``grad(pmean(loss))`` is right there and
    wrong in ``pmap``. This function is right in ``pmap``, ``vmap`` and both kinds of ``shard_map``.

    Args:
      loss_fn: ``(params, *args) -> loss``, the mean over the examples of its own device; with
        ``has_aux``, ``(loss, aux)``.
      axis_name: of ``pmap``, ``vmap`` or ``shard_map``, or a tuple of names.
      has_aux: whether ``loss_fn`` also returns auxiliary data. It is not averaged: average the
        statistics of BatchNorm inside ``loss_fn``.

    Returns:
      ``(params, *args) -> (loss, grads)``, or ``((loss, aux), grads)``, with loss and grads
      averaged over the axis. It costs one all-reduce of the gradients.

    Raises:
      ValueError: if the loss is already the same on every device, as far as this can be seen
        (``check_vma=True``): its gradient would be N times too small.
    """

    @functools.wraps(loss_fn)
    def local_loss(params, *args):
        result = loss_fn(params, *args)
        loss = result[0] if has_aux else result
        missing = _devices.not_varying(axis_name, loss)
        if missing:
            raise ValueError(
                f"The loss does not vary over the mapped axis {missing}: give value_and_grad the"
                " loss of the device's own examples, without a mean over devices."
            )
        return result

    def averaged(params, *args):
        params = _devices.local_to(axis_name, params)
        result, grads = jax.value_and_grad(local_loss, has_aux=has_aux)(params, *args)
        grads = _devices.mean_over(axis_name, grads)
        if has_aux:
            loss, aux = result
            return (_devices.mean_over(axis_name, loss), aux), grads
        return _devices.mean_over(axis_name, result), grads

    return averaged


def grad(loss_fn: Callable[..., Any], axis_name: Any, *, has_aux: bool = False) -> Callable:
    """``value_and_grad`` without the loss: ``grads``, or ``(grads, aux)``, as in ``jax.grad``."""

    def averaged(params, *args):
        result, grads = value_and_grad(loss_fn, axis_name, has_aux=has_aux)(params, *args)
        return (grads, result[1]) if has_aux else grads

    return averaged


def check_same_everywhere(opt_state: Any) -> None:
    """Checks that all devices and processes will take the same decisions, before the first step.

    If a process was resumed from another step, or each device has its own key, the devices take
    different branches, and their collectives are paired wrongly or wait forever. This function
    compares the step, the states of radius and sampling policy, and the age of the sample: a few
    scalars, and one small collective if there are several processes.

    Args:
      opt_state: the state of the whole chain, on devices.

    Raises:
      ValueError: on every process, naming what differs and its values.
    """
    state = get_state(opt_state)
    decisive = {name: getattr(state, name) for name in ("step", "age", "radius", "sampling")}
    for path, x in jax.tree_util.tree_leaves_with_path(decisive):
        local = local_parts(x)
        # Under pmap the first axis enumerates the devices.
        is_whole = not isinstance(x, jax.Array) or x.is_fully_replicated
        copies = np.stack(local) if is_whole else np.concatenate(local)
        ends = np.unique(copies, axis=0)[[0, -1]]  # One shape, however many devices there are.
        values = np.unique(np.concatenate(of_all_processes(ends)), axis=0)
        if len(values) > 1:
            raise ValueError(
                f"The optimizer state{jax.tree_util.keystr(path)} differs between devices or"
                f" processes: {', '.join(map(str, values))}. Restore all of them from the same"
                " checkpoint, and give all the same seed."
            )


def of_all_processes(x: Any) -> np.ndarray:
    """Gathers an array of the same shape and dtype from all processes, along a new first axis.

    It waits for every device of this process. (JAX's ``process_allgather`` waits for one, and a
    process that ends while another one still sends leaves the others waiting.) A process that meets
    an error of its own must make this call nevertheless, with a value that signals the error,
    because the others wait for it. 64-bit values become 32-bit unless JAX has x64 enabled.
    """
    x = np.asarray(x)
    x = x.astype(jax.dtypes.canonicalize_dtype(x.dtype))
    if jax.process_count() == 1:
        return x[None]
    mesh = Mesh(np.reshape(jax.devices(), (jax.process_count(), -1)), ("process", "device"))
    parts = jax.make_array_from_process_local_data(NamedSharding(mesh, P("process")), x[None])
    return local_parts(jax.jit(_identity, out_shardings=NamedSharding(mesh, P()))(parts))[0]


def _identity(x):  # one function, so that JAX compiles it once for all leaves of one shape
    return x
