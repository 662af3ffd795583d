"""A moving average of the weights, to evaluate in their place: ``--ema-decay``."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


class Ema(NamedTuple):
    """The averages of the parameters and of BatchNorm's statistics."""

    params: Any
    batch_stats: Any


def start(params: Any, batch_stats: Any) -> Ema:
    return jax.tree.map(jnp.copy, Ema(params, batch_stats))


def update(average: Ema, params: Any, batch_stats: Any, step: ArrayLike, decay: float) -> Ema:
    """The average after a step; it is short while there are few to average, as in TensorFlow."""
    decay_now = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(
        lambda old, new: decay_now * old + (1 - decay_now) * new, average, Ema(params, batch_stats)
    )
