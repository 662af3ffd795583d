"""Ascent directions: from a gradient to the direction of the perturbation.

An ascent is any ``optax.GradientTransformation``. The perturbation is ε = ρ · ascent(g). It runs on
sampled steps only, on gradients and parameters in at least float32, and receives ``params``,
``step`` (the step of training, int32 scalar) and the extra arguments of the update. Masks that
exclude parameters from the perturbation belong here::

    optax.chain(optax.masked(optax.set_to_zero(), is_bias), normalize())  # norm without biases
    optax.chain(normalize(), optax.masked(optax.set_to_zero(), is_bias))  # norm with biases

The masks of sparse SAM are in ``arsam_jax.sparse``.
"""

from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from arsam_jax import _check, _random, _tree


def normalize() -> optax.GradientTransformation:
    """SAM's direction g / ‖g‖, with one Euclidean norm over all leaves.

    The norm is accumulated in at least float32. A zero gradient gives a zero direction.

    References:
      Foret et al., Sharpness-Aware Minimization (arXiv 2010.01412), equation 2.
    """

    def update_fn(updates, state, params=None):
        del params
        return _tree.scale(_tree.safe_divide(1.0, _tree.norm(updates)), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)


def normalize_by_weights(eta: float = 0.01) -> optax.GradientTransformation:
    r"""ASAM's direction :math:`T^2 g / \|T g\|` with :math:`T = |w| + \eta`, elementwise.

    The perturbation of a weight is proportional to its size. The measured sharpness therefore does
    not change when one layer is scaled up and the next one down.

    Args:
      eta: η >= 0, which lets weights near zero be perturbed, too.

    References:
      Kwon et al., ASAM (arXiv 2102.11600), equation 8 and algorithm 1.
    """
    _check.check_number("eta", eta, low=0)

    def update_fn(updates, state, params=None):
        if params is None:
            raise ValueError("normalize_by_weights needs params.")
        size = jax.tree.map(
            lambda w: jnp.abs(w).astype(w.dtype) + jnp.asarray(eta, w.dtype), params
        )
        scaled = jax.tree.map(jnp.multiply, size, updates)
        inverse_norm = _tree.safe_divide(1.0, _tree.norm(scaled))
        return _tree.scale(inverse_norm, jax.tree.map(jnp.multiply, size, scaled)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)


class SubtractEmaState(NamedTuple):
    """State of ``subtract_ema``.

    Attributes:
      is_started: bool scalar, whether there has been a gradient.
      ema: the moving average of the gradients, shaped like the parameters.
    """

    is_started: jax.Array
    ema: chex.ArrayTree


def subtract_ema(sigma: float = 1.0, decay: float = 0.9) -> optax.GradientTransformation:
    r"""Friendly SAM's :math:`g - \sigma m`, the part of a gradient that is specific to its batch.

    m is the moving average of the previous gradients, :math:`m \leftarrow \lambda m + (1 - \lambda)
    g`. It starts at the first gradient, which is passed on unchanged. Keeps one buffer shaped like
    the parameters.

    Args:
      sigma: σ >= 0; 0 passes gradients on unchanged.
      decay: λ in [0, 1).

    References:
      Li et al., Friendly Sharpness-Aware Minimization (arXiv 2403.12350), and its official code.
    """
    _check.check_number("sigma", sigma, low=0)
    _check.check_number("decay", decay, low=0, below=1)

    def init_fn(params):
        return SubtractEmaState(jnp.zeros([], bool), jax.tree.map(jnp.zeros_like, params))

    def update_fn(updates, state, params=None):
        del params
        direction = _tree.subtract(updates, _tree.scale(sigma, state.ema))
        ema = _tree.add(_tree.scale(decay, state.ema), _tree.scale(1 - decay, updates))
        direction = _tree.where(state.is_started, direction, updates)
        ema = _tree.where(state.is_started, ema, updates)
        return direction, SubtractEmaState(jnp.ones([], bool), ema)

    return optax.GradientTransformation(init_fn, update_fn)


class RandomMaskState(NamedTuple):
    """State of ``random_mask``: ``key``, uint32 (2,), folded with the step for each mask."""

    key: jax.Array


def random_mask(
    beta: float, per: Literal["coordinate", "tensor"] = "coordinate", seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    r"""ESAM's stochastic weight perturbation: keeps a random share β and divides it by β.

    Args:
      beta: β in (0, 1]; 1 keeps everything.
      per: "coordinate" as in the paper, or "tensor" for whole leaves as in its code.
      seed: of the masks.

    References:
      Du et al., Efficient Sharpness-Aware Minimization (arXiv 2110.03141), section 3.1.
    """
    _check.check_number("beta", beta, above=0, high=1)
    _check.check_choice("per", per, ("coordinate", "tensor"))
    _check.check_seed(seed)

    def update_fn(updates, state, params=None, *, step, **extra_args):
        del params, extra_args
        keys = optax.tree.split_key_like(_random.step_key(state.key, step), updates)
        share = jnp.asarray(beta, jnp.float32)

        def mask(key, x):
            shape = () if per == "tensor" else x.shape
            is_kept = jax.random.uniform(key, shape, jnp.float32) < share
            return jnp.where(is_kept, x / jnp.asarray(beta, x.dtype), 0)

        return jax.tree.map(mask, keys, updates), state

    def init_fn(params):
        del params
        return RandomMaskState(_random.make_key(seed, "ascent.random_mask"))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)  # pyright: ignore
