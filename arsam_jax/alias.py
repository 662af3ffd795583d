"""The named methods: each is a line over radius, probe, sampling and correction.

Every one is the first link of a chain, before the base optimizer, and needs ``grad_fn`` in
``update``; see ``sharpness_aware``.
"""

from typing import Any

import optax

from arsam_jax.core import sharpness_aware
from arsam_jax.correction import reuse_psf
from arsam_jax.sampling import ParamsMask, autoregressive

__all__ = ["arsam", "sam"]


def sam(rho: optax.ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    r"""Sharpness-Aware Minimization: :math:`\nabla L(w + \rho\, g / \|g\|)` on every step.

    Costs 2 gradients a step and no memory beyond them.

    Args:
      rho: ρ >= 0, or a schedule. 0.05 to 0.2 for networks with normalisation layers.

    References:
      Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization
      (arXiv 2010.01412).
    """
    return sharpness_aware(rho)


def arsam(
    rho: optax.ScalarOrSchedule,
    alpha: float,
    *,
    ema_decay: float = 0.9,
    segment_length: int = 50,
    initial_samples: float = 1,
    min_samples: float = 1,
    warmup_steps: int = 0,
    reuse_steps: int | None = 2,
    reuse_dtype: Any = None,
    norm_mask: ParamsMask = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""ARSAM: SAM's second gradient on adaptively chosen steps, its PSF reused in between.

    With g the gradient, gA the one at w + ρ g/‖g‖, and PSF = gA − g of the last sampled step, a
    step emits

    .. math::
        \begin{cases}
          g_A & \text{if sampled: in the warm-up, or with probability } p, \\
          g + \mathrm{PSF} & \text{in the reuse window after a sample,} \\
          g & \text{otherwise,}
        \end{cases}

    and p follows the ratio ‖PSF‖ / ‖g‖ (``sampling.autoregressive``). Costs 1 + %SAM gradients a
    step, that is 2 / (1 + %SAM) times the speed of SAM, and one buffer shaped like the
    parameters.

    Args:
      rho: ρ >= 0, or a schedule.
      alpha: α >= 0; the paper recommends 0.1 to 1 (0.2 CIFAR-10, 0.4 CIFAR-100, 0.8
        Tiny-ImageNet). A larger one samples more.
      ema_decay: β in [0, 1), of the moving average of the ratio's relative change.
      segment_length: M, the steps between two changes of p. 50 in the paper; p moves only once a
        segment, so short runs need shorter ones.
      initial_samples: expected samples in the first segment, in [min_samples, M].
      min_samples: least expected samples in a segment, in [0, M].
      warmup_steps: the steps at the start that are all sampled.
      reuse_steps: the steps after a sample that reuse its PSF. 2 is the paper's ARSAM, 0 its
        ablation ARSAM-A without a buffer, None reuses until the next sample.
      reuse_dtype: dtype of the PSF buffer; None keeps that of the parameters.
      norm_mask: tree of bools, or a function that makes it from the parameters: the leaves over
        which the ratio is measured.
      seed: of the draws.

    References:
      Deng and Pang, Adaptively Sampling-Reusing-Mixing Decomposed Gradients to Speed Up Sharpness
      Aware Minimization (arXiv 2510.03763).
    """
    return sharpness_aware(
        rho,
        sampling=autoregressive(
            alpha,
            ema_decay=ema_decay,
            segment_length=segment_length,
            initial_samples=initial_samples,
            min_samples=min_samples,
            warmup_steps=warmup_steps,
            norm_mask=norm_mask,
            seed=seed,
        ),
        correction=reuse_psf(reuse_steps, reuse_dtype),
    )
