"""What a step did, as plain numbers for a logger."""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from arsam_jax.core import get_state
from arsam_jax.parallel import local_parts

_OF_POLICIES = ("probability", "ratio", "ema_ratio", "samples")


def metrics_dict(opt_state: Any) -> dict[str, float]:
    """Everything worth a curve about the one sharpness-aware link in an optimizer state.

    Python floats by name, which ``json.dumps`` and every logger take: the fields of ``Metrics``,
    of which four are 0 until a step is called with ``measure=True``;
    ``sampled_share``, the share of the steps so far that were sampled, in [0, 1] (%SAM / 100, 0
    before the first step); and of a policy that has them ``probability`` p, ``ratio`` c,
    ``ema_ratio`` r̂ and ``samples`` s, see ``sampling.AutoregressiveState``. It waits for the step:
    call it when you log.

    Args:
      opt_state: of the whole chain, sharded or not, ``nnx.Optimizer.opt_state`` included. What
        ``pmap`` keeps for each device has to be the same on all of them.

    Raises:
      TypeError: inside ``jit``, where there are no numbers yet.
      ValueError: if there is no link or more than one, or if several models (``vmap``) are in it.
    """
    state = get_state(opt_state)
    values = {name: _number(name, x) for name, x in state.metrics._asdict().items()}
    values["sampled_share"] = values["num_sampled"] / max(_number("step", state.step), 1)
    for name in _OF_POLICIES:
        if hasattr(state.sampling, name):
            values[name] = _number(name, getattr(state.sampling, name))
    return values


def _number(name, tree):
    (x,) = jax.tree.leaves(tree)  # of NNX, a variable
    if isinstance(x, Tracer):
        raise TypeError(
            "metrics_dict makes Python floats, which do not exist inside jit: return"
            " get_metrics(opt_state) or the optimizer state, and call it outside."
        )
    copies = np.concatenate([np.ravel(part) for part in local_parts(x)])
    if len(np.unique(copies)) != 1:
        raise ValueError(
            f"metrics_dict takes the state of one model, got the values {copies} of {name}. Take"
            " one of them: jax.tree.map(lambda x: x[0], opt_state)."
        )
    return float(copies[0])
