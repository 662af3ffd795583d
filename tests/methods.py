"""The public transformations, as the contract suite builds them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

import arsam_jax
from arsam_jax import sparse


class Method(NamedTuple):
    """A public alias and the arguments the suite gives it."""

    alias: Callable[..., optax.GradientTransformationExtraArgs]
    kwargs: dict[str, Any]
    static: tuple[str, ...] = ()  # what optax.inject_hyperparams has to leave alone
    evaluations: int = 1  # of grad_fn on a sampled step
    reads_grads: bool = True
    needs_examples: bool = False
    is_local: bool = False  # by its definition what a device does depends on its own shard

    def make(self, **overrides) -> optax.GradientTransformationExtraArgs:
        return self.alias(**{**self.kwargs, **overrides})


def fisher_mask(sparsity):
    return sparse.fisher_mask(sparsity, refresh_every=4)


def structured_mask(sparsity):
    return sparse.fisher_mask(sparsity, pattern="structured", refresh_every=4)


def dynamic_mask(sparsity):
    return sparse.dynamic_mask(sparsity, total_steps=20, refresh_every=4)


METHODS = {
    "sam": Method(arsam_jax.sam, {"rho": 0.1}),
    "arsam": Method(
        arsam_jax.arsam, {"rho": 0.1, "alpha": 0.5, "segment_length": 5, "initial_samples": 2}
    ),
    "arsam_without_reuse": Method(
        arsam_jax.arsam,
        {"rho": 0.1, "alpha": 0.5, "segment_length": 4, "reuse_steps": 0},
        static=("reuse_steps",),
    ),
    "arsam_reuse_until_next": Method(
        arsam_jax.arsam, {"rho": 0.1, "alpha": 0.5, "initial_samples": 10, "reuse_steps": None}
    ),
    "sam_every_k": Method(arsam_jax.sam_every_k, {"rho": 0.1, "k": 3}),
    "looksam": Method(arsam_jax.looksam, {"rho": 0.1, "k": 3}),
    "ae_sam": Method(arsam_jax.ae_sam, {"rho": 0.1, "total_steps": 20}),
    "budgeted_sam": Method(
        arsam_jax.budgeted_sam,
        {"rho": 0.1, "share": 0.3, "total_steps": 30, "bound": 0.5},
        static=("share",),
    ),
    "esam": Method(
        arsam_jax.esam,
        {"rho": 0.1},
        static=("gamma",),
        evaluations=0,
        needs_examples=True,
        is_local=True,
    ),
    "esam_per_tensor": Method(
        arsam_jax.esam,
        {"rho": 0.1, "beta": 0.6, "gamma": 1, "per": "tensor"},
        static=("gamma",),
        needs_examples=True,
    ),
    "gradient_norm_penalty": Method(arsam_jax.gradient_norm_penalty, {"rho": 0.1, "strength": 0.7}),
    "asam": Method(arsam_jax.asam, {"rho": 0.1}),
    "gsam": Method(arsam_jax.gsam, {"rho": 0.1, "alpha": 0.3}),
    "multi_step_sam": Method(
        arsam_jax.multi_step_sam,
        {"rho": 0.1, "num_steps": 2},
        static=("num_steps",),
        evaluations=2,
    ),
    "momentum_sam": Method(arsam_jax.momentum_sam, {"rho": 0.1}, reads_grads=False),
    "gam": Method(arsam_jax.gam, {"rho": 0.1, "grad_rho": 0.03, "gamma": 0.2}, evaluations=3),
    "wsam": Method(arsam_jax.wsam, {"rho": 0.1, "gamma": 0.6}),
    "sampa": Method(
        arsam_jax.sampa,
        {"rho": 0.1, "learning_rate": 0.05},
        evaluations=2,
        reads_grads=False,
    ),
    "friendly_sam": Method(arsam_jax.friendly_sam, {"rho": 0.1}),
    "final_phase_sam": Method(
        arsam_jax.final_phase_sam, {"rho": 0.1, "total_steps": 12, "share": 0.5}
    ),
    "usam": Method(arsam_jax.usam, {"rho": 0.1}),
    "m_sam": Method(
        arsam_jax.m_sam,
        {"rho": 0.1, "num_microbatches": 2},
        static=("num_microbatches",),
        evaluations=0,
        reads_grads=False,
        needs_examples=True,
        is_local=True,
    ),
    "rw_sam": Method(
        arsam_jax.rw_sam, {"rho": 0.1}, reads_grads=False, needs_examples=True, is_local=True
    ),
    "k_sam": Method(
        arsam_jax.k_sam,
        {"rho": 0.1},
        static=("share",),
        evaluations=0,
        reads_grads=False,
        needs_examples=True,
        is_local=True,
    ),
    "ausam": Method(
        arsam_jax.ausam,
        {"rho": 0.1, "num_examples": 64, "steps_per_epoch": 4, "rise_epochs": 4},
        static=("num_examples", "share"),
        evaluations=0,
        reads_grads=False,
        needs_examples=True,
        is_local=True,
    ),
    "sparse_sam_fisher": Method(
        arsam_jax.sparse_sam,
        {"rho": 0.1, "sparsity": 0.5, "mask": fisher_mask},
        static=("sparsity", "mask"),
        needs_examples=True,
    ),
    "sparse_sam_structured": Method(
        arsam_jax.sparse_sam,
        {"rho": 0.1, "sparsity": 0.5, "mask": structured_mask},
        static=("sparsity", "mask"),
        needs_examples=True,
    ),
    "sparse_sam_dynamic": Method(
        arsam_jax.sparse_sam,
        {"rho": 0.1, "sparsity": 0.5, "mask": dynamic_mask},
        static=("sparsity", "mask"),
    ),
}
