"""Starting from a checkpoint of the base optimizer."""

from typing import Any

import jax
import jax.numpy as jnp

from arsam_jax import _check
from arsam_jax.core import SharpnessAwareState, get_state


def from_base_state(opt_state: Any, base_opt_state: Any, *, step: int = 0) -> Any:
    """Continues a run of the base optimizer with a sharpness-aware transformation in front of it.

    Everything in ``opt_state`` except the state of the transformation is replaced, leaf by leaf, by
    ``base_opt_state``: momentum, second moments and step counters go on where they were.

    Args:
      opt_state: ``tx.init(params)`` of the new optimizer, with the parameters of the checkpoint.
        ``tx`` is ``optax.chain(arsam_jax.arsam(0.1), base)``, for example.
      base_opt_state: the restored state of ``base``, with the leaves of ``base.init(params)``.
        Transformations after the base optimizer are part of ``base``.
      step: the steps already taken, from which schedules of ρ and sampling policies that depend on
        the step go on. 0 starts them anew.

    Returns:
      A state of ``tx``.

    Raises:
      ValueError: if ``opt_state`` does not hold exactly one sharpness-aware state, or the other
        leaves of it differ from ``base_opt_state`` in number, shape or dtype.

    Example::

        base = optax.adamw(1e-3)
        tx = optax.chain(arsam_jax.arsam(0.1), base)
        opt_state = arsam_jax.from_base_state(tx.init(params), restored_opt_state, step=10_000)
    """
    _check.check_integer("step", step, low=0, high=2**31 - 1)
    get_state(opt_state)  # raises unless there is exactly one

    def is_state(x):
        return isinstance(x, SharpnessAwareState)

    leaves, structure = jax.tree.flatten(opt_state, is_leaf=is_state)
    expected = [x for x in leaves if not is_state(x)]
    given = jax.tree.leaves(base_opt_state)
    kinds = [[(jnp.shape(x), jnp.result_type(x)) for x in tree] for tree in (expected, given)]
    if kinds[0] != kinds[1]:
        differing = [
            f"leaf {i}: {found[1]}{list(found[0])} instead of {wanted[1]}{list(wanted[0])}"
            for i, (wanted, found) in enumerate(zip(*kinds, strict=False))
            if wanted != found
        ]
        raise ValueError(
            "base_opt_state must have the leaves of the base optimizer's state in opt_state:"
            f" {len(expected)} leaves, got {len(given)}."
            + (f" They differ at {_check.list_some(differing)}." if differing else "")
            + " It must come from the same base optimizer and parameters, without a"
            " sharpness-aware transformation."
        )
    remaining = iter(given)
    joined = [
        x._replace(step=jnp.asarray(step, jnp.int32)) if is_state(x) else next(remaining)
        for x in leaves
    ]
    return jax.tree.unflatten(structure, joined)
