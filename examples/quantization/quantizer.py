"""Learned step size quantization, LSQ (arXiv 1902.08153): a quantizer with a trained step size."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

_LEAST_STEP = float(jnp.finfo(jnp.float32).eps)


class Levels(NamedTuple):
    """The smallest and largest integer of a quantizer, −Qn and Qp."""

    low: int
    high: int


def levels(bits: int, *, is_signed: bool) -> Levels:
    """Return −2^(bits − 1) and 2^(bits − 1) − 1 if signed, else 0 and 2^bits − 1."""
    half = 2 ** (bits - 1)
    return Levels(-half, half - 1) if is_signed else Levels(0, 2 * half - 1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def quantize(v: jax.Array, step: jax.Array, levels: Levels, count: int) -> jax.Array:
    r"""Round to multiples of a step size s, :math:`\hat v = s\,\mathrm{round}(\mathrm{clip}(v / s,
    -Q_n, Q_p))`.

    The derivatives are LSQ's. The one with respect to v is 1 between −Qn and Qp and 0 outside. The
    one with respect to s is

    .. math::
        \frac{\partial \hat v}{\partial s} = \frac{1}{\sqrt{N Q_p}} \begin{cases}
          \mathrm{round}(v / s) - v / s & \text{if } -Q_n < v / s < Q_p, \\
          -Q_n \text{ or } Q_p & \text{outside.} \end{cases}

    The step size is s = ``positive(step)``.

    Args:
      v: A float32 array of any shape.
      step: A float32 scalar.
      levels: −Qn and Qp.
      count: N, the number of weights of a layer, or of activations of one example.
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
    sign = jnp.where(step < 0, -1.0, 1.0)  # the derivative of ``positive``
    scale = sign / (count * levels.high) ** 0.5
    v_tangent, step_tangent = tangents
    tangent = jnp.where(is_inside, v_tangent, 0.0) + scale * of_step * step_tangent
    return quantize(v, step, levels, count), tangent


def positive(step: jax.Array) -> jax.Array:
    """Return the step size of a parameter: its absolute value, but at least float32's ε.

    If an update moves the parameter past 0, the step size is reflected and continues to learn.
    Clipping the parameter instead would have to be repeated for the perturbed parameter, and
    clipping here would make the gradient 0. The logarithm is not the parameter because LSQ's
    gradient scale is derived for s.
    """
    return jnp.maximum(jnp.abs(step), _LEAST_STEP)


def initial_step(v: jax.Array, levels: Levels) -> jax.Array:
    """Return 2 ⟨|v|⟩ / √Qp for weights, or for the activations of the first batch."""
    return 2 * jnp.mean(jnp.abs(v)) / levels.high**0.5


def integers(v: jax.Array, step: jax.Array, levels: Levels) -> jax.Array:
    """Return the integer of each value, int32 with the shape of ``v``."""
    return jnp.round(jnp.clip(v / positive(step), *levels)).astype(jnp.int32)
