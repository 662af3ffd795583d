"""The named methods: each is a few lines over radius, probe, sampling and correction.

Put a method first in an ``optax.chain``, in front of the base optimizer, and pass ``grad_fn`` to
``update``; see ``sharpness_aware``, which also lists the other extra arguments.

In the formulas g is the gradient of the mini-batch at the parameters w, and g_A the perturbed
gradient. *Costs* counts gradients per step, averaged over a run. *Keeps* says which buffers the
state holds between steps. ``rho`` is the radius ρ >= 0 of the perturbation: a number, a schedule
``step -> ρ``, or a policy of ``arsam_jax.radius``.

SAF and MESA are terms of the loss and live in ``arsam_jax.trajectory``.
"""

import numbers
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax

from arsam_jax import _check, ascent, correction, sampling, selection, sparse
from arsam_jax import probe as probes
from arsam_jax.core import sharpness_aware
from arsam_jax.radius import RadiusLike, RadiusPolicy

_Transform = optax.GradientTransformationExtraArgs


def sam(rho: RadiusLike) -> _Transform:
    r"""Sharpness-Aware Minimization: :math:`g_A = \nabla L(w + \rho\, g / \|g\|)` on every step.

    Costs 2 gradients per step. Keeps no buffer.

    Args:
      rho: the radius; 0.05 in the paper, up to 0.4 in practice.

    Example::

        tx = optax.chain(arsam_jax.sam(0.1), optax.sgd(0.1, momentum=0.9))

    References:
      Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization
      (arXiv 2010.01412).
    """
    return sharpness_aware(rho)


def sam_every_k(rho: RadiusLike, k: int) -> _Transform:
    """SAM-k: SAM on the steps 0, k, 2k, ..., and g on all others.

    Costs 1 + 1/k gradients per step. Keeps no buffer. k = 1 is SAM.

    Another way to make up for the skipped steps than a larger radius is to multiply the PSF,
    g_A − g, by the interval, as the periodic SAM of init2winit does::

        every_k, times_k = sampling.every_k(k), correction.interpolate(k)
        tx = sharpness_aware(rho, sampling=every_k, correction=times_k)

    Args:
      rho: the radius. A radius larger than SAM's makes up for part of what the skipped steps lose.
      k: >= 1; the papers use 5.

    Example::

        tx = optax.chain(arsam_jax.sam_every_k(0.1, k=5), optax.sgd(0.1, momentum=0.9))

    References:
      "SAM-5" of Liu et al. (arXiv 2203.02714).
    """
    return sharpness_aware(rho, sampling=sampling.every_k(k))


def looksam(
    rho: RadiusLike, k: int = 5, alpha: float = 0.7, *, reuse_dtype: Any = None
) -> _Transform:
    r"""LookSAM: SAM on every k-th step, and its part orthogonal to g reused on the steps between.

    A sampled step returns g_A and keeps :math:`g_v = g_A - (\langle g, g_A\rangle / \|g\|^2)\, g`.
    The other steps return :math:`g + \alpha\, (\|g\| / \|g_v\|)\, g_v`. All norms are over the
    whole tree. Costs 1 + 1/k gradients per step. Keeps one buffer of the size of the parameters. k
    = 1 is SAM.

    Args:
      rho: the radius.
      k: >= 1; 5 in the paper.
      alpha: α >= 0; 0.7 in the paper. In our experiments 0.7 failed to train on six of nine small
        tasks; a search on each task chose 0.1 to 0.7.
      reuse_dtype: dtype of the buffer, 16 bits or more; None keeps the dtype of each parameter.

    Example::

        tx = optax.chain(arsam_jax.looksam(0.1, k=5, alpha=0.3), optax.sgd(0.1, momentum=0.9))

    References:
      Liu et al., Towards Efficient and Scalable Sharpness-Aware Minimization (arXiv 2203.02714).
    """
    return sharpness_aware(
        rho,
        sampling=sampling.every_k(k),
        correction=correction.reuse_orthogonal(alpha, reuse_dtype),
    )


def ae_sam(
    rho: RadiusLike,
    total_steps: int,
    *,
    decay: float = 0.9,
    lambda_1: float = -1,
    lambda_2: float = 1,
) -> _Transform:
    r"""AE-SAM: SAM on steps with a large gradient, :math:`\|g\|^2 \ge \mu + c_t \sigma`, else g.

    Costs 1 + the share of such steps, about 1.5 gradients per step. Keeps no buffer. See
    ``sampling.gradient_norm_gate``.

    Args:
      rho: the radius.
      total_steps: the length of the run, over which c_t goes from ``lambda_2`` to ``lambda_1``.
      decay: δ in [0, 1), of the moving mean μ and variance σ² of ‖g‖²; 0.9 in the paper.
      lambda_1: c at the end; −1 in the paper.
      lambda_2: c at the start; 1 in the paper.

    Example::

        tx = optax.chain(arsam_jax.ae_sam(0.1, total_steps=10_000), optax.sgd(0.1, momentum=0.9))

    References:
      Jiang et al., An Adaptive Policy to Employ Sharpness-Aware Minimization (arXiv 2304.14647).
    """
    gate = sampling.gradient_norm_gate(
        total_steps, decay=decay, lambda_1=lambda_1, lambda_2=lambda_2
    )
    return sharpness_aware(rho, sampling=gate)


def arsam(
    rho: RadiusLike,
    alpha: float = 0.4,
    *,
    ema_decay: float = 0.9,
    segment_length: int = 50,
    initial_samples: float = 1,
    min_samples: float = 1,
    warmup_steps: int = 0,
    reuse_steps: int | None = 2,
    reuse_dtype: Any = None,
    norm_mask: sampling.ParamsMask = None,
    seed: int = 0,
) -> _Transform:
    r"""ARSAM: SAM's second gradient on adaptively chosen steps, its PSF reused in between.

    The PSF (projection of the second-order gradient on the first-order gradient) is g_A − g. With
    the PSF of the last sampled step, a step returns

    .. math::
        \begin{cases}
          g_A & \text{if sampled: in the warm-up, or with probability } p, \\
          g + \mathrm{PSF} & \text{in the reuse window after a sample,} \\
          g & \text{otherwise.}
        \end{cases}

    The probability p follows the ratio ‖PSF‖ / ‖g‖, see ``sampling.autoregressive``. Costs 1 +
    share gradients per step, where share is the share of sampled steps (the paper's %SAM / 100).
    Counted in gradients, a step is then 2 / (1 + share) times as fast as SAM's. Keeps one buffer of
    the size of the parameters.

    Args:
      rho: the radius.
      alpha: α >= 0, how strongly a change of the ratio moves the sampling probability. A larger α
        samples more steps. The paper recommends 0.1 to 1 (0.2 for CIFAR-10, 0.4 for CIFAR-100, 0.8
        for Tiny-ImageNet).
      ema_decay: β in [0, 1), of the moving average of the ratio's relative change.
      segment_length: M, the number of steps between two changes of p. The paper uses 50. Since p
        changes only once per segment, short runs need shorter segments, for example 8.
      initial_samples: expected samples in the first segment, in [min_samples, M].
      min_samples: the smallest expected number of samples in a segment, in [0, M].
      warmup_steps: how many steps at the start are all sampled.
      reuse_steps: how many steps after a sample reuse its PSF. 2 is the paper's ARSAM, 0 its
        ablation ARSAM-A, which keeps no buffer (a Python number; with optax.inject_hyperparams name
        it in static_args). None reuses until the next sample.
      reuse_dtype: dtype of the buffer, 16 bits or more; None keeps the dtype of each parameter.
      norm_mask: a tree of bools, or a function that makes it from the parameters: the leaves over
        which the ratio is measured. With optax.inject_hyperparams name it in static_args.
      seed: of the draws. Two transformations with equal seeds sample the same steps, so give each
        player of a GAN its own seed.

    Example::

        tx = optax.chain(arsam_jax.arsam(rho=0.1), optax.sgd(0.1, momentum=0.9))

    References:
      Deng and Pang, Adaptively Sampling-Reusing-Mixing Decomposed Gradients to Speed Up Sharpness
      Aware Minimization (arXiv 2510.03763).
    """
    return sharpness_aware(
        rho,
        sampling=sampling.autoregressive(
            alpha,
            ema_decay=ema_decay,
            segment_length=segment_length,
            initial_samples=initial_samples,
            min_samples=min_samples,
            warmup_steps=warmup_steps,
            norm_mask=norm_mask,
            seed=seed,
        ),
        correction=correction.reuse_psf(reuse_steps, reuse_dtype),
    )


def budgeted_sam(
    rho: RadiusLike,
    *,
    share: float | None = None,
    speedup: float | None = None,
    total_steps: int | None = None,
    bound: float | None = None,
    num_microbatches: int | None = None,
    reuse_dtype: Any = None,
) -> _Transform:
    r"""SAM at a cost that you set: a fixed share of sampled steps, a wider radius, bounded reuse.

    This is the project's own method. It has no paper; *How budgeted_sam was designed* in the
    documentation explains it. Use it with the ρ that suits SAM and choose the share.

    * A fixed share of the steps is sampled, evenly spaced.
    * They use the radius :math:`\rho\, share^{-2/3}`, which makes up for the steps between. With
      ``total_steps`` the radius rises from ρ to ρ / share over the run instead, as
      :math:`\rho\, (1 + (1 / share - 1)\, t / T)`.
    * A PSF is scaled down to ‖PSF‖ <= ‖g‖ / √share when it is sampled, so that a ρ that is too
      large cannot throw the weights far off.
    * The steps between return g + PSF with the PSF of the last sample, scaled down to ‖PSF‖ <= κ
      ‖g‖.

    Costs 1 + share gradients per step. Keeps one buffer of the size of the parameters. share = 1 is
    SAM.

    Args:
      rho: the radius that suits SAM. The value of a radius policy that follows the samples
        (``radius.hold_ratio``) is used as it is.
      share: the share of sampled steps, in (0, 1], a Python float; 0.25 if neither it nor
        ``speedup`` is given.
      speedup: instead of ``share``, the speed-up over SAM in gradients, 2 / (1 + share), in [1, 2).
      total_steps: T >= 1, the length of the run. Give it only if the learning rate falls to nearly
        0 over the run, as a cosine schedule does.
      bound: κ > 0; min(0.1, 0.8 share) if None.
      num_microbatches: K takes the sampled gradients as ``m_sam`` does, which needs
        ``example_loss_fn`` and ``batch``. A step then costs 1 + 2 share, or with
        ``microbatch_grads`` 1 + share, and K gradients are in memory at once. None samples as SAM.
      reuse_dtype: dtype of the buffer, 16 bits or more; None keeps the dtype of each parameter.

    Example::

        tx = optax.chain(arsam_jax.budgeted_sam(0.1, share=1/4), optax.sgd(0.1, momentum=0.9))
    """
    follows = isinstance(rho, RadiusPolicy) and rho.record is not None
    if not isinstance(rho, RadiusPolicy):
        _check.check_scalar_or_schedule("rho", rho, low=0)  # as it was given, not as it is scaled
    if speedup is not None:
        _check.check_static("speedup", speedup)
        _check.check_number("speedup", speedup, low=1, below=2)
        if share is not None:
            raise ValueError(f"Give either share or speedup, got {share!r} and {speedup!r}.")
        share = 2 / speedup - 1
    share = 0.25 if share is None else share
    _check.check_static("share", share)
    _check.check_number("share", share, above=0, high=1)
    bound = min(0.1, 0.8 * share) if bound is None else bound
    if total_steps is not None:
        _check.check_integer("total_steps", total_steps, low=1)

    if follows and total_steps is not None:
        raise ValueError(
            "total_steps raises a given radius during the run, so rho must be a number or a"
            f" schedule, got the policy {rho!r}. Leave out total_steps."
        )

    def rising(step):
        progress = jnp.minimum(jnp.float32(step) / jnp.float32(total_steps), 1)
        return 1 + (1 / float(share) - 1) * progress

    if not follows:
        rho = _scaled(rho, share ** (-2 / 3) if total_steps is None else rising)
    is_whole = num_microbatches is None
    return sharpness_aware(
        rho,
        probe=probes.perturb() if is_whole else probes.microbatched(num_microbatches),
        sampling=sampling.budgeted(share),
        correction=correction.reuse_psf(
            steps=None,
            dtype=reuse_dtype,
            bound=bound,
            sample_bound=None if share == 1 else share ** (-1 / 2),
        ),
    )


def _scaled(rho: RadiusLike, factor: float | Callable[[Any], Any]) -> RadiusLike:
    """ρ times a factor, which may depend on the step."""

    def times(base: Any, step: Any) -> Any:
        return jnp.float32(base) * factor(step) if callable(factor) else base * factor

    if isinstance(rho, numbers.Real) and rho == 0:
        return 0.0  # The number 0 stays one, for which the gradients are returned untouched.
    if isinstance(rho, RadiusPolicy):
        return rho._replace(value=lambda state, step: times(rho.value(state, step), step))
    if callable(rho):
        return lambda step: times(rho(step), step)
    return (lambda step: times(rho, step)) if callable(factor) else times(rho, 0)


def esam(
    rho: RadiusLike,
    *,
    beta: float = 0.5,
    gamma: float = 0.5,
    per: Literal["coordinate", "tensor"] = "coordinate",
    seed: int = 0,
) -> _Transform:
    r"""ESAM: perturbs a random part of the parameters, and takes g_A on the examples that it hurts.

    The perturbation is ε = ρ m g / (β ‖g‖) with a Bernoulli(β) mask m (stochastic weight
    perturbation). g_A is taken over the γB examples whose loss rises most from w to w + ε
    (sharpness-sensitive data selection). Needs ``example_loss_fn`` and ``batch``. Costs 1 + γ
    gradients and two forward passes per step. Keeps no buffer. β = γ = 1 is SAM.

    Args:
      rho: the radius.
      beta: β in (0, 1]; the paper uses 0.5 to 0.6.
      gamma: γ in (0, 1], a Python float; 0.5 in the paper.
      per: draw m per coordinate as in the paper, or per tensor as in its code.
      seed: of the masks.

    Example::

        tx = optax.chain(arsam_jax.esam(0.1), optax.sgd(0.1, momentum=0.9))

    References:
      Du et al., Efficient Sharpness-aware Minimization (arXiv 2110.03141).
    """
    direction = optax.chain(ascent.normalize(), ascent.random_mask(beta, per, seed))
    return sharpness_aware(rho, probe=selection.largest_rises(gamma, direction))


def gradient_norm_penalty(rho: RadiusLike, strength: float) -> _Transform:
    r"""Gradient-norm penalty: returns :math:`(1 - a)\, g + a\, \nabla L(w + \rho\, g / \|g\|)`.

    To first order in ρ this is the gradient of L + λ ‖∇L‖ with λ = a ρ. Costs 2 gradients per step.
    Keeps no buffer. a = 1 is SAM, a = 0 the base optimizer.

    Args:
      rho: the radius, r in the paper; 0.05 to 0.1 there.
      strength: a = λ / ρ >= 0; 0.6 to 0.8 in the paper.

    Example::

        tx = optax.chain(arsam_jax.gradient_norm_penalty(0.1, strength=0.7), optax.sgd(0.1))

    References:
      Zhao et al., Penalizing Gradient Norm for Efficiently Improving Generalization
      (arXiv 2202.03599).
    """
    return sharpness_aware(rho, correction=correction.interpolate(strength))


def wsam(rho: RadiusLike, gamma: float = 0.9) -> _Transform:
    r"""WSAM: weights the sharpness, :math:`g + \alpha\,(g_A - g)` with :math:`\alpha = \gamma /
    (1 - \gamma)`.

    γ > 1/2 weights the sharpness more than SAM does; the default weights it nine times as much.
    This transformation is the coupled form. The authors' default is the decoupled form, in which α
    (g_A − g) does not pass through the base optimizer, whose momentum μ would multiply it by 1 / (1
    − μ)::

        tx = decouple(wsam(rho), optax.sgd(schedule, momentum=0.9), schedule)

    Costs 2 gradients per step. Keeps no buffer. γ = 0 is the base optimizer, γ = 1/2 here is SAM.

    Args:
      rho: the radius; 0.05 in the authors' code.
      gamma: γ in [0, 1); 0.9 in the authors' code, for the decoupled form.

    References:
      Yue et al., Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization
      Term (arXiv 2305.15817).
    """
    _check.check_number("gamma", gamma, low=0, below=1)
    return sharpness_aware(rho, correction=correction.interpolate(gamma / (1 - gamma)))


def asam(rho: RadiusLike, *, eta: float = 0.01) -> _Transform:
    r"""ASAM: SAM with :math:`\varepsilon = \rho\, T^2 g / \|T g\|`, :math:`T = |w| + \eta`.

    The perturbation of a weight is proportional to its size, so the method does not depend on how
    weights are scaled between layers. Costs 2 gradients per step. Keeps no buffer.

    Args:
      rho: the radius, relative to the weights: about ten times SAM's, 0.5 to 2.
      eta: η >= 0; 0.01 in the paper.

    Example::

        tx = optax.chain(arsam_jax.asam(1.0), optax.sgd(0.1, momentum=0.9))

    References:
      Kwon et al., ASAM (arXiv 2102.11600).
    """
    return sharpness_aware(rho, probe=probes.perturb(ascent.normalize_by_weights(eta)))


def gsam(rho: RadiusLike, alpha: float) -> _Transform:
    r"""GSAM: returns :math:`g_A - \alpha\, g_\perp`, with g_⊥ the part of g orthogonal to g_A.

    Costs 2 gradients per step. Keeps no buffer. α = 0 is SAM.

    Args:
      rho: the radius. In the paper it follows the learning rate; pass a schedule for that.
      alpha: α >= 0; 0.1 to 0.4 in the paper.

    Example::

        tx = optax.chain(arsam_jax.gsam(0.1, alpha=0.2), optax.sgd(0.1, momentum=0.9))

    References:
      Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training
      (arXiv 2203.08065).
    """
    return sharpness_aware(rho, correction=correction.subtract_orthogonal(alpha))


def multi_step_sam(rho: RadiusLike, num_steps: int) -> _Transform:
    r"""Multi-step SAM: n ascent steps of ρ/n each, then the gradient there.

    Costs 1 + n gradients per step. Keeps no buffer. n = 1 is SAM.

    Args:
      rho: the radius that the n steps share.
      num_steps: n >= 1, a Python integer.

    Example::

        tx = optax.chain(arsam_jax.multi_step_sam(0.1, num_steps=2), optax.sgd(0.1, momentum=0.9))

    References:
      Foret et al. (arXiv 2010.01412), appendix on inner steps.
    """
    return sharpness_aware(rho, probe=probes.multi_step(num_steps))


def gam(
    rho: RadiusLike,
    *,
    grad_rho: optax.ScalarOrSchedule = 0.02,
    alpha: float = 0.6,
    beta: float = 0.5,
    gamma: float = 0.03,
) -> _Transform:
    r"""GAM: minimizes :math:`\max_{\|\varepsilon\| \le \rho} \|\nabla L(w + \varepsilon)\|` with L.

    This is first-order flatness, in the accelerated form of the paper: gradients at a short
    distance ρ' replace Hessian-vector products (``probe.gradient_norm_aware``). The defaults are
    the authors' for CIFAR-100. Costs 4 gradients per step. Keeps no buffer. α = 1 and γ = 0 is SAM
    with the radius ρ'.

    Args:
      rho: the radius of the ball; 0.2 in the authors' code, ``grad_norm_rho`` there.
      grad_rho: ρ' >= 0, or a schedule; 0.02 to 0.04 in the authors' code, a fifth to a tenth of ρ.
      alpha: α in [0, 1], the weight at w among the gradients ahead; in the authors' code 0.1 for
        CIFAR-10 and 0.5 to 0.6 for CIFAR-100.
      beta: β in [0, 1], the weight at w among the gradients behind; 0.1, and 0.3 to 0.5.
      gamma: γ >= 0, the weight of the orthogonal part; 0.03 to 0.05.

    Example::

        tx = optax.chain(arsam_jax.gam(0.2), optax.sgd(0.1, momentum=0.9))

    References:
      Zhang et al., Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves
      Generalization (arXiv 2303.03108).
    """
    chosen = probes.gradient_norm_aware(grad_rho, alpha=alpha, beta=beta, gamma=gamma)
    return sharpness_aware(rho, probe=chosen)


def momentum_sam(rho: RadiusLike, *, decay: float = 0.9) -> _Transform:
    r"""Momentum-SAM: :math:`g_A = \nabla L(w - \rho\, v / \|v\|)`, v the momentum of the g_A.

    Costs 1 gradient per step inside jit: nothing reads the gradient at w, so XLA drops its backward
    pass (its forward pass stays if the loss is used). Keeps one buffer of the size of the
    parameters.

    Args:
      rho: the radius, several times SAM's. The authors use 15 times SAM's ρ (3 instead of 0.2). In
        our digits experiment 5 times SAM's ρ was as good as SAM, and 15 times failed to train; on
        other tasks a search chose 2 to 8 times.
      decay: μ in [0, 1), usually that of the base optimizer.

    Example::

        tx = optax.chain(arsam_jax.momentum_sam(0.5), optax.sgd(0.1, momentum=0.9))

    References:
      Becker et al., Momentum-SAM (arXiv 2401.12033).
    """
    return sharpness_aware(rho, probe=probes.momentum(decay))


def sampa(
    rho: RadiusLike, learning_rate: optax.ScalarOrSchedule, *, interpolation: float = 0.2
) -> _Transform:
    r"""SAMPa: SAM whose two gradients can be computed in parallel.

    :math:`g_A = (1 - \lambda) \nabla L_{t-1}(w + \rho\, d / \|d\|) + \lambda d'`, where d is the
    gradient kept from the previous step and its mini-batch, and :math:`d' = \nabla L_t(w - \eta\,
    d)` is kept for the next step (``probe.auxiliary_sequence``). Needs ``previous_grad_fn``, the
    ``grad_fn`` of the previous mini-batch. Costs 2 gradients per step inside jit, where XLA drops
    the backward pass at w, which nothing reads. The two gradients do not depend on each other.
    Keeps one buffer of the size of the parameters.

    Args:
      rho: the radius; 0.1 in the authors' code.
      learning_rate: η >= 0 of the base optimizer, or its schedule.
      interpolation: λ in [0, 1]; 0.2 in the paper.

    Example::

        tx = optax.chain(arsam_jax.sampa(0.1, schedule), optax.sgd(schedule, momentum=0.9))

    References:
      Xie et al., SAMPa: Sharpness-aware Minimization Parallelized (arXiv 2410.10683).
    """
    return sharpness_aware(rho, probe=probes.auxiliary_sequence(learning_rate, interpolation))


def friendly_sam(rho: RadiusLike, *, sigma: float = 1.0, decay: float = 0.9) -> _Transform:
    r"""Friendly SAM: :math:`\varepsilon = \rho\, d / \|d\|` with :math:`d = g - \sigma\, m`.

    m is the moving average of the gradients before this one, so d is the part of g that is specific
    to its mini-batch. Costs 2 gradients per step. Keeps one buffer of the size of the parameters. σ
    = 0 is SAM.

    Args:
      rho: the radius; 0.1 to 0.4.
      sigma: σ >= 0; 1 in the paper.
      decay: λ in [0, 1), of the moving average; 0.6 to 0.95 in the paper.

    Example::

        tx = optax.chain(arsam_jax.friendly_sam(0.2), optax.sgd(0.1, momentum=0.9))

    References:
      Li et al., Friendly Sharpness-Aware Minimization (arXiv 2403.12350).
    """
    direction = optax.chain(ascent.subtract_ema(sigma, decay), ascent.normalize())
    return sharpness_aware(rho, probe=probes.perturb(direction))


def final_phase_sam(rho: RadiusLike, total_steps: int, share: float) -> _Transform:
    """SAM in the last share of the steps, and the base optimizer before.

    Costs 1 + share gradients per step. Keeps no buffer. share = 1 is SAM.

    Args:
      rho: the radius.
      total_steps: the length of the run.
      share: in [0, 1].

    Example::

        tx = optax.chain(arsam_jax.final_phase_sam(0.1, 10_000, share=0.25), optax.adamw(1e-3))

    References:
      Temperon (arXiv 2609.17575).
    """
    return sharpness_aware(rho, sampling=sampling.final_phase(total_steps, share))


def usam(rho: RadiusLike) -> _Transform:
    r"""Unnormalized SAM: :math:`g_A = \nabla L(w + \rho\, g)`.

    Costs 2 gradients per step. Keeps no buffer.

    Args:
      rho: in units of a learning rate, not of a length.

    Example::

        tx = optax.chain(arsam_jax.usam(0.05), optax.sgd(0.1, momentum=0.9))

    References:
      Andriushchenko and Flammarion, Towards Understanding Sharpness-Aware Minimization
      (arXiv 2206.06232).
    """
    return sharpness_aware(rho, probe=probes.perturb(optax.identity()))


def m_sam(rho: RadiusLike, num_microbatches: int) -> _Transform:
    r"""m-SAM: each of K micro-batches is perturbed by its own gradient.

    :math:`g_A = \frac1K \sum_k \nabla L_k(w + \rho\, g_k / \|g_k\|)`, with m = B / K examples in
    each micro-batch. Needs ``example_loss_fn`` and ``batch``. Costs 2 gradients per step inside
    jit, where XLA drops the gradient of the whole batch, which nothing reads (3 outside jit). Keeps
    no buffer. K = 1 is SAM, K = B perturbs separately for each example.

    Args:
      rho: the radius.
      num_microbatches: K, a Python integer that divides the batch size.

    Example::

        tx = optax.chain(arsam_jax.m_sam(0.1, num_microbatches=2), optax.sgd(0.1, momentum=0.9))

    References:
      Foret et al. (arXiv 2010.01412), section 4.1 on m-sharpness.
    """
    return sharpness_aware(rho, probe=probes.microbatched(num_microbatches))


def rw_sam(
    rho: RadiusLike, *, inverse_temperature: float = 1.0, delta: float | None = None, seed: int = 0
) -> _Transform:
    r"""Reweighted SAM: ε from a mean gradient in which large example gradients weigh more.

    :math:`p_i \propto \exp(\lambda n_i / \bar n)`, where n_i estimates ‖∇ℓ_i‖ by the slope of ℓ_i
    along one random direction (``probe.reweighted``). Needs ``example_loss_fn`` and ``batch``.
    Costs 2 gradients and two forward passes per step (one with ``delta``) inside jit, where XLA
    drops the gradient of the caller, which nothing reads. Keeps no buffer. λ = 0 is SAM.

    Args:
      rho: the radius.
      inverse_temperature: λ >= 0, without unit.
      delta: None for the exact slope. δ > 0 takes it from the losses at w and w + δz, which a loss
        with a ``jax.custom_vjp`` inside needs.
      seed: of the random directions.

    Example::

        tx = optax.chain(arsam_jax.rw_sam(0.1), optax.sgd(0.1, momentum=0.9))

    References:
      Luo et al., Reweighted SAM (arXiv 2509.18001).
    """
    return sharpness_aware(
        rho, probe=probes.reweighted(inverse_temperature, delta=delta, seed=seed)
    )


def k_sam(rho: RadiusLike, share: float = 0.5) -> _Transform:
    r"""K-SAM: SAM on the K examples of the batch with the largest losses.

    :math:`g_A = \nabla L_K(w + \rho\, \nabla L_K / \|\nabla L_K\|)`, with L_K their mean loss and K
    = max(1, round(share · B)) (``selection.largest_losses``). Needs ``example_loss_fn`` and
    ``batch``. Costs 2 share gradients and a forward pass of the batch inside jit, where XLA drops
    the gradient of the whole batch, which nothing reads. Keeps no buffer. share = 1 is SAM.

    Args:
      rho: the radius.
      share: K / B in (0, 1], a Python float; with ``axis_name``, of each device's examples.

    Example::

        tx = optax.chain(arsam_jax.k_sam(0.1, share=0.5), optax.sgd(0.1, momentum=0.9))

    References:
      Ni et al., K-SAM: Sharpness-Aware Minimization at the Speed of SGD (arXiv 2210.12864).
    """
    return sharpness_aware(rho, probe=selection.largest_losses(share))


def ausam(
    rho: RadiusLike,
    num_examples: int,
    steps_per_epoch: int,
    *,
    share: float = 0.5,
    rise_epochs: float = 30,
    min_weight: float = 0.1,
    max_weight: float = 0.5,
    seed: int = 0,
) -> _Transform:
    r"""AUSAM: SAM on a part of the batch, drawn by how much ε has changed the losses of examples.

    The weight of an example is its mean ``|Δloss|`` under ε so far, scaled within the batch to
    [f_min, f_t], where f_t rises from f_min to f_max. The first epoch takes whole batches
    (``selection.largest_changes``). Needs ``example_loss_fn``, ``batch`` and ``example_index``.
    Costs 2 share gradients per step (2 in the first epoch) inside jit, where XLA drops the gradient
    of the whole batch, which nothing reads. Keeps no buffer of the size of the parameters, but 8
    bytes for each example of the data set. share = 1 is SAM.

    Args:
      rho: the radius; 0.1 in the authors' code.
      num_examples: the size of the data set, a Python integer.
      steps_per_epoch: >= 1.
      share: of the examples, in (0, 1], a Python float; with ``axis_name``, of each device's.
      rise_epochs: > 0, over which f_t rises; 30 in the authors' code, for 200 epochs.
      min_weight: f_min > 0.
      max_weight: f_max >= f_min.
      seed: of the draws.

    Example::

        tx = optax.chain(
            arsam_jax.ausam(0.1, num_examples=50_000, steps_per_epoch=390), optax.sgd(0.1)
        )

    References:
      AUSAM (arXiv 2406.08001).
    """
    probe = selection.largest_changes(
        num_examples,
        steps_per_epoch,
        share=share,
        rise_epochs=rise_epochs,
        min_weight=min_weight,
        max_weight=max_weight,
        seed=seed,
    )
    return sharpness_aware(rho, probe=probe)


def sparse_sam(
    rho: RadiusLike,
    sparsity: float = 0.5,
    *,
    mask: Callable[[float], optax.GradientTransformation] = sparse.fisher_mask,
) -> _Transform:
    r"""Sparse SAM: :math:`\varepsilon = \rho\, m \odot g / \|g\|` with a 0/1 mask m.

    Costs 2 gradients per step, and what the mask costs at each refresh. Keeps the mask, one byte
    per weight. Sparsity 0 is SAM. This is the explicit form, which does not save computation: see
    ``arsam_jax.sparse``.

    Args:
      rho: the radius of the dense perturbation.
      sparsity: the share of the weights without perturbation, in [0, 1); 0.5 in the paper.
      mask: makes the mask from the sparsity: ``sparse.fisher_mask`` (SSAM-F, which needs
        ``example_loss_fn``, and ``batch`` or better ``fisher_batch``, random training examples),
        or for instance ``lambda sparsity: sparse.dynamic_mask(sparsity, total_steps)`` (SSAM-D).

    Example::

        tx = optax.chain(arsam_jax.sparse_sam(0.1, sparsity=0.5), optax.sgd(0.1, momentum=0.9))

    References:
      Mi et al. (arXiv 2210.05177) and its official code.
    """
    if not callable(mask):
        raise TypeError(
            f"mask must be a function from the sparsity to an ascent, got {mask!r}. With"
            " optax.inject_hyperparams, name 'sparsity' and 'mask' in its static_args."
        )
    made = mask(sparsity)
    if not isinstance(made, optax.GradientTransformation):
        raise TypeError(
            "mask must return an ascent, such as sparse.fisher_mask(sparsity), got"
            f" mask({sparsity!r}) = {made!r}."
        )
    direction = optax.chain(ascent.normalize(), made)
    return sharpness_aware(rho, probe=probes.perturb(direction))


def masked_sam(rho: RadiusLike, mask: Any) -> _Transform:
    r"""SAM that perturbs only some of the parameters, chosen by name.

    The norm is that of the selected parameters. Costs at most 2 gradients per step. Keeps no
    buffer. Inside jit XLA leaves out the parts of the clean gradient that nothing reads, and takes
    the forward pass in front of the first perturbed layer once. With only the output layer of three
    selected (logits-SAM), a step takes 10 matrix products, where the base optimizer takes 8 and SAM
    16. With another correction or sampling than ``masked_sam`` has, it costs 2. A mask that selects
    everything is SAM.

    Args:
      rho: the radius.
      mask: a function from parameters to a tree of bools, such as ``masks.normalization()``
        (SAM-ON) or ``masks.matching("head")``, or such a tree. With optax.inject_hyperparams name
        it in static_args.

    Example::

        tx = optax.chain(
            arsam_jax.masked_sam(0.1, arsam_jax.masks.normalization()), optax.adamw(1e-3)
        )

    References:
      SAM-ON: Mueller et al. (arXiv 2306.04226) and its official code. Logits-SAM (arXiv
      2603.18258).
    """
    return sharpness_aware(rho, probe=probes.perturb(mask=mask))


def preconditioned_sam(rho: RadiusLike, *, decay: float = 0.999, eps: float = 1e-8) -> _Transform:
    r"""SAM with :math:`\varepsilon = \rho\, u / \|u\|`, :math:`u = g / (\sqrt{\hat v} + \epsilon)`.

    v is the moving average of g², as in Adam (``ascent.precondition``). Use it with the ``grad_fn``
    of ``functional.value_and_grad`` for the preconditioned functional SAM of the paper. Costs 2
    gradients per step. Keeps one buffer of the size of the parameters. A very large ϵ gives SAM.

    Args:
      rho: the radius.
      decay: β in [0, 1), of v.
      eps: ϵ > 0, added to the root.

    Example::

        tx = optax.chain(arsam_jax.preconditioned_sam(0.1), optax.adamw(1e-3))

    References:
      Singh et al., Avoiding spurious sharpness minimization broadens applicability of SAM (arXiv
      2502.02407).
    """
    direction = optax.chain(ascent.precondition(decay, eps), ascent.normalize())
    return sharpness_aware(rho, probe=probes.perturb(direction))


def stabilized_sam(rho: RadiusLike) -> _Transform:
    r"""Stabilized SAM: returns :math:`(\|g\| / \|g_A\|)\, g_A`.

    Costs 2 gradients per step. Keeps no buffer. For a loss whose gradient has the same norm
    everywhere it is SAM.

    Args:
      rho: the radius.

    Example::

        tx = optax.chain(arsam_jax.stabilized_sam(0.1), optax.sgd(0.1, momentum=0.9))

    References:
      Tan et al., Stabilizing Sharpness-aware Minimization Through A Simple Renormalization Strategy
      (arXiv 2401.07250).
    """
    return sharpness_aware(rho, correction=correction.rescale())


def directed_sam(rho: RadiusLike) -> _Transform:
    r"""SAM along a direction d that the caller gives: :math:`g_A = \nabla L(w + \rho\, d / \|d\|)`.

    Needs the extra argument ``direction``, shaped like the parameters (``probe.along_direction``):
    the gradient of an earlier step (AsyncSAM), or in federated learning the last but one global
    model minus the last one (FedLESAM). Costs 1 gradient per step inside jit, where XLA drops the
    backward pass at w, which nothing reads. Keeps no buffer. With d = g it is SAM, with d = 0 the
    base optimizer.

    Args:
      rho: the radius.

    Example::

        tx = optax.chain(arsam_jax.directed_sam(0.1), optax.sgd(0.1))
        updates, opt_state = tx.update(
            grads, opt_state, params, grad_fn=grad_fn, direction=previous_grads
        )

    References:
      AsyncSAM (arXiv 2503.11147); FedLESAM: Fan et al. (ICML 2024).
    """
    return sharpness_aware(rho, probe=probes.along_direction())


class Method(NamedTuple):
    """A method, and what a program that runs any of them has to know.

    Attributes:
      make: ``(rho, ...) -> transformation``, the function of the method's name.
      gradients: what a sampled step costs in all, in gradients of the mini-batch; None if that
        depends on an argument, or examples are left out.
      needs: the extra arguments of ``update`` besides ``grad_fn``.
      reads_grads: whether it reads the clean gradient. For a method that does not, the metrics
        (``measure=True``) cost its backward pass.
      is_local: whether what a device does depends, by the method's definition, on its own part of
        the batch.
    """

    make: Callable[..., optax.GradientTransformationExtraArgs]
    gradients: float | None = 2
    needs: tuple[str, ...] = ()
    reads_grads: bool = True
    is_local: bool = False


_EXAMPLES = ("example_loss_fn", "batch")

METHODS = {
    "sam": Method(sam),
    "arsam": Method(arsam),
    "budgeted_sam": Method(budgeted_sam),
    "sam_every_k": Method(sam_every_k),
    "looksam": Method(looksam),
    "ae_sam": Method(ae_sam),
    "final_phase_sam": Method(final_phase_sam),
    "esam": Method(esam, gradients=None, needs=_EXAMPLES, is_local=True),
    "sparse_sam": Method(sparse_sam, needs=_EXAMPLES),
    "masked_sam": Method(masked_sam),
    "preconditioned_sam": Method(preconditioned_sam),
    "stabilized_sam": Method(stabilized_sam),
    "directed_sam": Method(directed_sam, gradients=1, needs=("direction",), reads_grads=False),
    "gradient_norm_penalty": Method(gradient_norm_penalty),
    "asam": Method(asam),
    "gsam": Method(gsam),
    "usam": Method(usam),
    "m_sam": Method(m_sam, needs=_EXAMPLES, reads_grads=False, is_local=True),
    "multi_step_sam": Method(multi_step_sam, gradients=None),
    "momentum_sam": Method(momentum_sam, gradients=1, reads_grads=False),
    "friendly_sam": Method(friendly_sam),
    "gam": Method(gam, gradients=4),
    "wsam": Method(wsam),
    "sampa": Method(sampa, needs=("previous_grad_fn",), reads_grads=False),
    "rw_sam": Method(
        rw_sam, gradients=2 + 2 / 3, needs=_EXAMPLES, reads_grads=False, is_local=True
    ),
    "k_sam": Method(k_sam, gradients=None, needs=_EXAMPLES, reads_grads=False, is_local=True),
    "ausam": Method(
        ausam,
        gradients=None,
        needs=(*_EXAMPLES, "example_index"),
        reads_grads=False,
        is_local=True,
    ),
}
"""Every named method with what it costs and needs, for programs that offer or compare them."""
