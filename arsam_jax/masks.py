"""Which parameters are perturbed, by their names: masks for ``masked_sam`` and ``probe.perturb``.

A mask is a function from parameters to a tree of bools, True where a parameter is perturbed. Names
are the paths of the leaves: "LayerNorm_0/scale" in Flax Linen, "norm/scale/value" in Flax NNX,
"layers/0/norm/weight" in Equinox. Write your own mask as any function of the parameters.
"""

import re
from collections.abc import Callable
from typing import Any

import jax

from arsam_jax import _check, _tree

Mask = Callable[[Any], Any]
"""A function from parameters to a tree of bools."""
"""A function from parameters to a tree of bools, True where a parameter is perturbed."""


def matching(pattern: str) -> Mask:
    r"""Perturbs the parameters whose name matches a regular expression.

    Args:
      pattern: searched for anywhere in the path, whose keys are joined by "/", ignoring case.

    Returns:
      A function from parameters to a tree of bools.

    Raises:
      ValueError: if the pattern is no regular expression, or when the mask is called, that is in
        ``init``, if no parameter matches.
      TypeError: if the pattern is no string, or when the mask is called with a bare array, as by
        ``optax.inject_hyperparams`` without ``mask`` in its ``static_args``.

    Example::

        tx = optax.chain(arsam_jax.masked_sam(0.1, masks.matching("head|out")), optax.adamw(1e-3))
    """
    if not isinstance(pattern, str):
        raise TypeError(f"pattern must be a string, got {pattern!r}.")
    try:
        regex = re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise ValueError(
            f"pattern must be a regular expression, got {pattern!r}: {error}."
        ) from error

    def mask(params):
        _check.check_static("mask", params, "called with parameters that have names")
        names = _tree.names(params)
        found = [regex.search(name) is not None for name in names]
        if names and not any(found):
            raise ValueError(
                f"pattern must match the name of a parameter, got {pattern!r}. The names are"
                f" {_check.list_some(names, most=20)}."
            )
        return jax.tree.unflatten(jax.tree.structure(params), found)

    return mask


def normalization() -> Mask:
    """Perturbs only the parameters of normalization layers, as SAM-ON does.

    A normalization layer is one whose name contains "norm", or is "bn" or "ln" with an optional
    number. The authors' code looks for "norm" and "bn" anywhere in a name. Name other layers with
    ``matching``.

    Returns:
      A function from parameters to a tree of bools.

    Example::

        tx = optax.chain(arsam_jax.masked_sam(0.1, masks.normalization()), optax.adamw(1e-3))

    References:
      Mueller et al., Normalization Layers Are All That Sharpness-Aware Minimization Needs (arXiv
      2306.04226), and its official code.
    """
    return matching(r"norm|(^|[/_])(bn|ln)_?\d*([/_]|$)")


def without_biases() -> Mask:
    """Perturbs all parameters but those named "bias" or "b".

    Returns:
      A function from parameters to a tree of bools.
    """
    return matching(r"^(?!(.*/)?(bias|b)(/value)?$)")
