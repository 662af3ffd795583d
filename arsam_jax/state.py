"""The state of a sharpness-aware transformation: how to find, log and restore it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from arsam_jax import _check
from arsam_jax._devices import local_parts


class Metrics(NamedTuple):
    """What the last step did. All fields are scalars, float32 unless stated otherwise.

    The first three fields are always set. The others change only if ``update`` is called with
    ``measure=True`` and are 0 until then: each needs a pass over the gradients, and a method that
    does not read the clean gradient (``momentum_sam``, ``m_sam``, ...) has to compute it for them.

    Attributes:
      sampled: bool, whether the last step evaluated the probe, for most methods a second gradient.
      num_sampled: int32, the number of steps so far that did.
      rho: ρ of the last step, as the probe gets it: ``budgeted_sam`` multiplies its own argument.
      grad_norm: ‖g‖ of the last step.
      perturbed_grad_norm: the norm of the perturbed gradient of the last step that was both sampled
        and measured. The next two fields are of that step, too.
      correction_norm: ‖PSF‖, with PSF = perturbed gradient − gradient.
      cosine: the cosine between the gradient and the perturbed gradient.
    """

    sampled: jax.Array
    num_sampled: jax.Array
    rho: jax.Array
    grad_norm: jax.Array
    perturbed_grad_norm: jax.Array
    correction_norm: jax.Array
    cosine: jax.Array

    @classmethod
    def zeros(cls) -> "Metrics":
        """Before the first step."""
        dtypes = {"sampled": jnp.bool_, "num_sampled": jnp.int32}
        return cls(*(jnp.zeros([], dtypes.get(name, jnp.float32)) for name in cls._fields))


class SharpnessAwareState(NamedTuple):
    """State of ``sharpness_aware``: arrays only, of fixed shapes and dtypes.

    Attributes:
      step: int32 scalar, the number of steps taken. It saturates at 2³¹ − 1.
      age: int32 scalar, the number of steps since the last sampled step whose gradients were
        finite; ``correction.NEVER`` before the first.
      radius: state of the radius policy, () for a number or a schedule.
      probe: state of the probe.
      sampling: state of the sampling policy.
      correction: state of the correction.
      metrics: see ``Metrics``.
    """

    step: jax.Array
    age: jax.Array
    radius: Any
    probe: Any
    sampling: Any
    correction: Any
    metrics: Metrics


def get_state(opt_state: Any) -> SharpnessAwareState:
    """Returns the state of the sharpness-aware transformation in an optimizer state.

    Args:
      opt_state: the state of any chain or wrapper around exactly one such transformation.

    Raises:
      ValueError: if there is none, or more than one.
    """
    found = [x for x in jax.tree.leaves(opt_state, is_leaf=_is_state) if _is_state(x)]
    if len(found) != 1:
        raise ValueError(
            f"opt_state must hold exactly one sharpness-aware state, found {len(found)}."
            + " (A checkpoint restored without a target has none.)" * (not found)
        )
    return found[0]


def get_metrics(opt_state: Any) -> Metrics:
    """Returns the metrics of the sharpness-aware transformation in an optimizer state.

    Args:
      opt_state: the state of any chain or wrapper around exactly one such transformation.

    Raises:
      ValueError: if there is none, or more than one.
    """
    return get_state(opt_state).metrics


def metrics_dict(opt_state: Any) -> dict[str, float]:
    """Returns the metrics as Python floats, by name, for ``json.dumps`` or any logger.

    The result has the fields of ``Metrics``, of which four are 0 until a step is called with
    ``measure=True``, and ``sampled_share``, the share of the steps so far that were sampled, in
    [0, 1] (%SAM / 100, and 0 before the first step). For a policy that has them it also has
    ``probability`` p, ``ratio`` c, ``ema_ratio`` r̂ and ``samples`` s, see
    ``sampling.AutoregressiveState``. The call waits for the step to finish, so make it only when
    you log.

    Args:
      opt_state: the state of the whole chain, sharded or not, or ``nnx.Optimizer.opt_state``. Under
        ``pmap`` the copies of all devices must be equal.

    Raises:
      TypeError: inside ``jit``, where the values are not known yet.
      ValueError: if there is not exactly one sharpness-aware state, or it belongs to several models
        (``vmap``).
    """
    state = get_state(opt_state)
    values = {name: _number(name, x) for name, x in state.metrics._asdict().items()}
    values["sampled_share"] = values["num_sampled"] / max(_number("step", state.step), 1)
    for name in ("probability", "ratio", "ema_ratio", "samples"):
        if hasattr(state.sampling, name):
            values[name] = _number(name, getattr(state.sampling, name))
    return values


def from_base_state(opt_state: Any, base_opt_state: Any, *, step: int = 0) -> Any:
    """Continues a run of the base optimizer with a sharpness-aware transformation in front of it.

    Everything in ``opt_state`` except the sharpness-aware state is replaced, leaf by leaf, by
    ``base_opt_state``: momentum, second moments and step counters go on where they were.

    Args:
      opt_state: ``tx.init(params)`` of the new optimizer, with the parameters of the checkpoint.
        ``tx`` is ``optax.chain(arsam_jax.arsam(0.1), base)``, for example.
      base_opt_state: the restored state of ``base``, with the leaves of ``base.init(params)``.
        Transformations after the base optimizer are part of ``base``.
      step: the steps already taken. Schedules of ρ and sampling policies that depend on the step go
        on from it; 0 starts them anew.

    Returns:
      A state of ``tx``.

    Raises:
      ValueError: if ``opt_state`` does not hold exactly one sharpness-aware state, or its other
        leaves differ from ``base_opt_state`` in number, shape or dtype.

    Example::

        base = optax.adamw(1e-3)
        tx = optax.chain(arsam_jax.arsam(0.1), base)
        opt_state = arsam_jax.from_base_state(tx.init(params), restored_opt_state, step=10_000)
    """
    _check.check_integer("step", step, low=0, high=2**31 - 1)
    get_state(opt_state)  # raises unless there is exactly one
    leaves, structure = jax.tree.flatten(opt_state, is_leaf=_is_state)
    expected = [x for x in leaves if not _is_state(x)]
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
        x._replace(step=jnp.asarray(step, jnp.int32)) if _is_state(x) else next(remaining)
        for x in leaves
    ]
    return jax.tree.unflatten(structure, joined)


def _is_state(x):
    return isinstance(x, SharpnessAwareState)


def _number(name, tree):
    (x,) = jax.tree.leaves(tree)  # in NNX the array is inside a variable
    if isinstance(x, Tracer):
        raise TypeError(
            "metrics_dict returns Python floats, which are not known inside jit. Return the"
            " optimizer state (or get_metrics(opt_state)) and call metrics_dict outside."
        )
    copies = np.concatenate([np.ravel(part) for part in local_parts(x)])
    if len(np.unique(copies)) != 1:
        raise ValueError(
            f"metrics_dict takes the state of one model, got the values {copies} of {name}. Pass"
            " one of them: jax.tree.map(lambda x: x[0], opt_state)."
        )
    return float(copies[0])
