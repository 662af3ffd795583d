"""Which parameters are perturbed, by their names: masks for ``masked_sam`` and ``probe.perturb``.

A mask is a function from parameters to a tree of bools, True where a parameter is perturbed. Names
are the paths of the leaves in lower case: "layernorm_0/scale" in Flax Linen, "norm/scale/value" in
Flax NNX, "layers/0/norm/weight" in Equinox. Write your own mask as any function of the parameters.
"""

import re
from collections.abc import Callable
from typing import Any

import jax

from arsam_jax import _check, _tree

Mask = Callable[[Any], Any]


def matching(pattern: str) -> Mask:
    r"""Perturbs the parameters whose name matches a regular expression.

    Args:
      pattern: searched for anywhere in the lower-case path, whose keys are joined by "/".

    Returns:
      A function from parameters to a tree of bools.

    Raises:
      ValueError: when called, if no parameter matches.

    Example::

        tx = optax.chain(arsam_jax.masked_sam(0.1, masks.matching("head|out")), optax.adamw(1e-3))
    """
    regex = re.compile(pattern)

    def mask(params):
        _check.check_static("mask", params, "called with parameters that have names")
        names = _tree.names(params)
        found = [regex.search(name.lower()) is not None for name in names]
        if names and not any(found):
            raise ValueError(
                f"pattern must match the name of a parameter, got {pattern!r}. The names are"
                f" {_check.list_some([name.lower() for name in names], most=20)}."
            )
        return jax.tree.unflatten(jax.tree.structure(params), found)

    return mask


def normalization() -> Mask:
    """Perturbs only the parameters of normalization layers, as SAM-ON does.

    A normalization layer is one whose name contains "norm", or is "bn" or "ln" with an optional
    number.

    References:
      Mueller et al., Normalization Layers Are All That Sharpness-Aware Minimization Needs (arXiv
      2306.04226), and its official code.
    """
    return matching(r"norm|(^|[/_])(bn|ln)_?\d*([/_]|$)")


def without_biases() -> Mask:
    """Perturbs all parameters but those named "bias" or "b"."""
    return matching(r"^(?!(.*/)?(bias|b)(/value)?$)")
