"""The list of all methods, for whatever offers, tests or compares them: ``METHODS``."""

from collections.abc import Callable
from typing import NamedTuple

import optax

from arsam_jax import alias

_EXAMPLES = ("example_loss_fn", "batch")


class Method(NamedTuple):
    """A method, and what a program that runs any of them has to know.

    Attributes:
      make: ``(rho, ...) -> link``, the function of ``arsam_jax`` of the method's name.
      gradients: what a step that asks the probe costs in all, in gradients of the mini-batch; None
        where an argument decides it, or examples are left out.
      evaluations: how often it then calls ``grad_fn``.
      needs: the extra arguments of ``update`` besides ``grad_fn``.
      reads_grads: whether it reads the clean gradient. Of one that does not, asking for the metrics
        (``measure=True``) costs its backward pass.
      is_local: whether what a device does depends, by the method's definition, on its own part of
        the batch.
      static: what ``optax.inject_hyperparams`` has to leave alone, its ``static_args``.
    """

    make: Callable[..., optax.GradientTransformationExtraArgs]
    gradients: float | None = 2
    evaluations: int = 1
    needs: tuple[str, ...] = ()
    reads_grads: bool = True
    is_local: bool = False
    static: tuple[str, ...] = ()


METHODS = {
    "sam": Method(alias.sam),
    "arsam": Method(alias.arsam, static=("norm_mask", "reuse_dtype")),
    "budgeted_sam": Method(
        alias.budgeted_sam, static=("share", "speedup", "num_microbatches", "reuse_dtype")
    ),
    "sam_every_k": Method(alias.sam_every_k),
    "looksam": Method(alias.looksam, static=("reuse_dtype",)),
    "ae_sam": Method(alias.ae_sam),
    "final_phase_sam": Method(alias.final_phase_sam),
    "esam": Method(
        alias.esam,
        gradients=None,
        evaluations=0,
        needs=_EXAMPLES,
        is_local=True,
        static=("gamma",),
    ),
    "sparse_sam": Method(alias.sparse_sam, needs=_EXAMPLES, static=("sparsity", "mask")),
    "gradient_norm_penalty": Method(alias.gradient_norm_penalty),
    "asam": Method(alias.asam),
    "gsam": Method(alias.gsam),
    "usam": Method(alias.usam),
    "m_sam": Method(
        alias.m_sam,
        evaluations=0,
        needs=_EXAMPLES,
        reads_grads=False,
        is_local=True,
        static=("num_microbatches",),
    ),
    "multi_step_sam": Method(
        alias.multi_step_sam, gradients=None, evaluations=2, static=("num_steps",)
    ),
    "momentum_sam": Method(alias.momentum_sam, gradients=1, reads_grads=False),
    "friendly_sam": Method(alias.friendly_sam),
    "gam": Method(alias.gam, gradients=4, evaluations=3),
    "wsam": Method(alias.wsam),
    "sampa": Method(alias.sampa, evaluations=2, needs=("previous_grad_fn",), reads_grads=False),
    "rw_sam": Method(
        alias.rw_sam, gradients=2 + 2 / 3, needs=_EXAMPLES, reads_grads=False, is_local=True
    ),
    "k_sam": Method(
        alias.k_sam,
        gradients=None,
        evaluations=0,
        needs=_EXAMPLES,
        reads_grads=False,
        is_local=True,
        static=("share",),
    ),
    "ausam": Method(
        alias.ausam,
        gradients=None,
        evaluations=0,
        needs=(*_EXAMPLES, "example_index"),
        reads_grads=False,
        is_local=True,
        static=("num_examples", "share"),
    ),
}
