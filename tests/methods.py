"""The public transformations, as the contract suite builds them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

import arsam_jax


class Method(NamedTuple):
    """A public alias and the arguments the suite gives it."""

    alias: Callable[..., optax.GradientTransformationExtraArgs]
    kwargs: dict[str, Any]
    static: tuple[str, ...] = ()  # what optax.inject_hyperparams has to leave alone

    def make(self, **overrides) -> optax.GradientTransformationExtraArgs:
        return self.alias(**{**self.kwargs, **overrides})


METHODS = {
    "sam": Method(arsam_jax.sam, {"rho": 0.1}),
    "arsam": Method(
        arsam_jax.arsam, {"rho": 0.1, "alpha": 0.5, "segment_length": 5, "initial_samples": 2}
    ),
    "arsam_without_reuse": Method(
        arsam_jax.arsam, {"rho": 0.1, "alpha": 0.5, "segment_length": 4, "reuse_steps": 0}
    ),
    "arsam_reuse_until_next": Method(
        arsam_jax.arsam, {"rho": 0.1, "alpha": 0.5, "initial_samples": 10, "reuse_steps": None}
    ),
}
