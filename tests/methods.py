"""The methods with the arguments that the tests give them, and the choice of ten among them."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import optax
import pytest

from arsam_jax import masks, sparse
from arsam_jax.methods import METHODS as PUBLIC
from arsam_jax.methods import Method

# How often a sampled step calls ``grad_fn``, if not once.
EVALUATIONS = {
    **dict.fromkeys(("esam", "m_sam", "k_sam", "ausam"), 0),
    **dict.fromkeys(("multi_step_sam", "sampa"), 2),
    "gam": 3,
}
# The arguments that have to be in ``static_args`` of ``optax.inject_hyperparams``.
STATIC = {
    "arsam": ("norm_mask", "reuse_dtype"),
    "budgeted_sam": ("share", "speedup", "num_microbatches", "reuse_dtype"),
    "looksam": ("reuse_dtype",),
    "esam": ("gamma",),
    "sparse_sam": ("sparsity", "mask"),
    "m_sam": ("num_microbatches",),
    "multi_step_sam": ("num_steps",),
    "k_sam": ("share",),
    "ausam": ("num_examples", "share"),
    "masked_sam": ("mask",),
}


class Case(NamedTuple):
    """A method and the arguments that the tests give it."""

    method: Method
    kwargs: dict[str, Any]
    static: tuple[str, ...] = ()
    evaluations: int = 1

    @property
    def needs_examples(self) -> bool:
        return "batch" in self.method.needs

    def make(self, **overrides) -> optax.GradientTransformationExtraArgs:
        return self.method.make(**{**self.kwargs, **overrides})

    def injected(self) -> optax.GradientTransformationExtraArgs:
        """The transformation with every number an array in the state."""
        make = optax.inject_hyperparams(self.method.make, static_args=self.static)
        return make(**self.kwargs)


def fisher_mask(sparsity):
    return sparse.fisher_mask(sparsity, refresh_every=4)


def structured_mask(sparsity):
    return sparse.fisher_mask(sparsity, pattern="structured", refresh_every=4)


def dynamic_mask(sparsity):
    return sparse.dynamic_mask(sparsity, total_steps=20, refresh_every=4)


ARGUMENTS: dict[str, dict[str, Any]] = {
    "arsam": {"alpha": 0.5, "segment_length": 5, "initial_samples": 2},
    "esam": {"seed": 1},
    "sam_every_k": {"k": 3},
    "looksam": {"k": 3},
    "ae_sam": {"total_steps": 20},
    "budgeted_sam": {"share": 0.3, "total_steps": 30, "bound": 0.5},
    "gradient_norm_penalty": {"strength": 0.7},
    "gsam": {"alpha": 0.3},
    "multi_step_sam": {"num_steps": 2},
    "gam": {"grad_rho": 0.03, "gamma": 0.2},
    "wsam": {"gamma": 0.6},
    "sampa": {"learning_rate": 0.05},
    "final_phase_sam": {"total_steps": 12, "share": 0.5},
    "m_sam": {"num_microbatches": 2},
    "ausam": {"num_examples": 64, "steps_per_epoch": 4, "rise_epochs": 4},
    "sparse_sam": {"sparsity": 0.5, "mask": fisher_mask},
    "masked_sam": {"mask": masks.without_biases()},
    "preconditioned_sam": {"decay": 0.9},
}
METHODS = {
    name: Case(
        method,
        {"rho": 0.1} | ARGUMENTS.get(name, {}),
        STATIC.get(name, ()),
        EVALUATIONS.get(name, 1),
    )
    for name, method in PUBLIC.items()
}
# Variants whose arguments select other parts of the code.
METHODS |= {
    "arsam_without_reuse": Case(
        PUBLIC["arsam"],
        {"rho": 0.1, "alpha": 0.5, "segment_length": 4, "reuse_steps": 0},
        static=("reuse_steps",),
    ),
    "arsam_reuse_until_next": Case(
        PUBLIC["arsam"],
        {"rho": 0.1, "alpha": 0.5, "initial_samples": 10, "reuse_steps": None},
        static=STATIC["arsam"],
    ),
    "budgeted_m_sam": Case(
        PUBLIC["budgeted_sam"]._replace(needs=("example_loss_fn", "batch"), is_local=True),
        {"rho": 0.1, "share": 0.3, "num_microbatches": 2},
        static=STATIC["budgeted_sam"],
        evaluations=0,
    ),
    "esam_per_tensor": Case(
        PUBLIC["esam"]._replace(is_local=False),
        {"rho": 0.1, "beta": 0.6, "gamma": 1, "per": "tensor"},
        static=STATIC["esam"],
    ),
    "sparse_sam_structured": Case(
        PUBLIC["sparse_sam"],
        {"rho": 0.1, "sparsity": 0.5, "mask": structured_mask},
        static=STATIC["sparse_sam"],
    ),
    "sparse_sam_dynamic": Case(
        PUBLIC["sparse_sam"]._replace(needs=()),
        {"rho": 0.1, "sparsity": 0.5, "mask": dynamic_mask},
        static=STATIC["sparse_sam"],
    ),
}

# These ten cover all kinds of part: every probe that keeps a state, draws or selects examples,
# every sampling policy that follows data, and both corrections that keep a tree.
KINDS = (
    *("arsam", "ae_sam", "looksam", "budgeted_m_sam", "esam"),
    *("ausam", "sparse_sam", "momentum_sam", "sampa", "rw_sam"),
)


def every_method(default: Iterable[str] = KINDS) -> list[Any]:
    """Parameters of a test that compiles each method. All but ``default`` are long tests."""
    return [
        pytest.param(name, marks=() if name in default else pytest.mark.long) for name in METHODS
    ]
