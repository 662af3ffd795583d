"""Learned step size quantization, LSQ (arXiv 1902.08153): a quantizer with a step size to train."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

_LEAST_STEP = float(jnp.finfo(jnp.float32).eps)


class Levels(NamedTuple):
    """The integers that a quantizer rounds to, from −Qn = ``low`` to Qp = ``high``."""

    low: int
    high: int


def levels(bits: int, *, is_signed: bool) -> Levels:
    """−2^(bits − 1) to 2^(bits − 1) − 1 if signed, else 0 to 2^bits − 1."""
    half = 2 ** (bits - 1)
    return Levels(-half, half - 1) if is_signed else Levels(0, 2 * half - 1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def quantize(v: jax.Array, step: jax.Array, levels: Levels, count: int) -> jax.Array:
    r"""Rounds to multiples of a step size: :math:`\hat v = s\,\mathrm{round}(\mathrm{clip}(v / s,
    -Q_n, Q_p))`.

    The derivatives are LSQ's: of v 1 inside of the levels and 0 outside; of s

    .. math::
        \frac{\partial \hat v}{\partial s} = \frac{1}{\sqrt{N Q_p}} \begin{cases}
          \mathrm{round}(v / s) - v / s & \text{if } -Q_n < v / s < Q_p, \\
          -Q_n \text{ or } Q_p & \text{outside.} \end{cases}

    The step size is s = ``positive(step)``.

    Args:
      v: of any shape, float32.
      step: scalar, float32.
      levels: −Qn and Qp.
      count: N, of the weights of a layer, or of the activations of one example.
    """
    s = positive(step)
    return s * jnp.round(jnp.clip(v / s, levels.low, levels.high))


@quantize.defjvp
def _jvp(levels, count, primals, tangents):
    v, step = primals
    ratio = v / positive(step)
    is_inside = (levels.low < ratio) & (ratio < levels.high)
    clipped = jnp.clip(ratio, levels.low, levels.high)
    of_step = jnp.where(is_inside, jnp.round(ratio) - ratio, clipped)
    sign = jnp.where(step < 0, -1.0, 1.0)  # of positive
    scale = sign / (count * levels.high) ** 0.5
    v_tangent, step_tangent = tangents
    tangent = jnp.where(is_inside, v_tangent, 0.0) + scale * of_step * step_tangent
    return quantize(v, step, levels, count), tangent


def positive(step: jax.Array) -> jax.Array:
    """The step size that a parameter stands for: its absolute value, or float32's ε if greater.

    An update may carry the parameter past 0; the step size is then reflected and goes on learning.
    A bound on the parameter would have to be repeated for the perturbed one, and beneath a bound in
    here the gradient would be 0. The logarithm as the parameter would be positive, too, but LSQ's
    gradient scale is made for s itself.
    """
    return jnp.maximum(jnp.abs(step), _LEAST_STEP)


def initial_step(v: jax.Array, levels: Levels) -> jax.Array:
    """2 ⟨|v|⟩ / √Qp: of the weights, or of the activations of the first batch."""
    return 2 * jnp.mean(jnp.abs(v)) / levels.high**0.5


def integers(v: jax.Array, step: jax.Array, levels: Levels) -> jax.Array:
    """The level of each value, int32 of the shape of ``v``."""
    return jnp.round(jnp.clip(v / positive(step), *levels)).astype(jnp.int32)
