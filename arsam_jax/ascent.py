"""Ascent directions: the transformation from a gradient to the direction of the perturbation.

An ascent is any ``optax.GradientTransformation``. The perturbation is ε = ρ · ascent(g). It runs
on sampled steps only, on gradients and parameters in at least float32, and receives ``params``,
``step`` (the true step of training) and the extra arguments of the update. Masks belong here::

    optax.chain(optax.masked(optax.set_to_zero(), is_bias), normalize())  # norm without biases
    optax.chain(normalize(), optax.masked(optax.set_to_zero(), is_bias))  # norm with them
"""

import optax

from arsam_jax import _tree


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
