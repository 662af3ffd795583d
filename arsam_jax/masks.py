"""Which parameters are perturbed, by their names: masks for ``masked_sam`` and ``probe.perturb``.

A mask is a function from parameters to a tree of bools, True where a parameter is perturbed. Names
are the paths of the leaves, such as "Dense_0/kernel" in Flax or "layers/0/norm/weight" in Equinox,
in lower case. Write your own mask as any function of the parameters.
"""

import re
from collections.abc import Callable
from typing import Any

import jax

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
        def matches(path, leaf):
            del leaf
            name = jax.tree_util.keystr(path, simple=True, separator="/").lower()
            return regex.search(name) is not None

        found = jax.tree_util.tree_map_with_path(matches, params)
        if jax.tree.leaves(params) and not any(jax.tree.leaves(found)):
            paths = jax.tree_util.tree_leaves_with_path(params)
            names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
            raise ValueError(f"No parameter matches {pattern!r}. Their names are {names}.")
        return found

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
    return matching(r"^(?!(.*/)?(bias|b)$)")
