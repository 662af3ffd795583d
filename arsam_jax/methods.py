"""The named methods: each is a line over radius, probe, sampling and correction.

Every one is the first link of a chain, before the base optimizer, and needs ``grad_fn`` in
``update``; see ``sharpness_aware``. g is the gradient of the mini-batch, g_A the perturbed one.
``rho`` is the radius ρ >= 0 of the perturbation, a schedule ``step -> ρ``, or a policy of
``arsam_jax.radius``. Costs are in gradients a step; "keeps" counts buffers shaped like the
parameters. SAF and MESA are terms of the loss, in ``arsam_jax.trajectory``.
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

    Costs 2, keeps nothing.

    Args:
      rho: the radius; 0.05 in the paper, up to 0.4 in use.

    References:
      Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization
      (arXiv 2010.01412).
    """
    return sharpness_aware(rho)


def sam_every_k(rho: RadiusLike, k: int) -> _Transform:
    """SAM-k: SAM on steps 0, k, 2k, ..., g on the others.

    Costs 1 + 1/k, keeps nothing. k = 1 is SAM.

    Args:
      rho: the radius. A larger one than SAM's makes up for part of what the skipped steps lose.
      k: >= 1; the papers use 5.

    References:
      "SAM-5" of Liu et al. (arXiv 2203.02714).
    """
    return sharpness_aware(rho, sampling=sampling.every_k(k))


def looksam(
    rho: RadiusLike, k: int = 5, alpha: float = 0.7, *, reuse_dtype: Any = None
) -> _Transform:
    r"""LookSAM: SAM every k steps, its part orthogonal to g reused in between.

    A sampled step emits g_A and keeps :math:`g_v = g_A - (\langle g, g_A\rangle / \|g\|^2)\, g`;
    the others emit :math:`g + \alpha\, (\|g\| / \|g_v\|)\, g_v`, all norms over the whole tree.
    Costs 1 + 1/k, keeps 1. k = 1 is SAM.

    Args:
      rho: the radius.
      k: >= 1; 5 in the paper.
      alpha: α >= 0; 0.7 in the paper. It collapsed on six of nine small trainings; a search for
        each took 0.1 to 0.7 (docs/studies/peers.md).
      reuse_dtype: of the buffer, 16 bits or more; None keeps that of the parameters.

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
    r"""AE-SAM: SAM where the gradient is large, :math:`\|g\|^2 \ge \mu + c_t \sigma`, else g.

    Costs 1 + the share of such steps, about a half; keeps nothing. See
    ``sampling.gradient_norm_gate``.

    Args:
      rho: the radius.
      total_steps: of the run; c_t goes from ``lambda_2`` to ``lambda_1`` over them.
      decay: δ in [0, 1), of the moving mean μ and variance σ² of ‖g‖²; 0.9 in the paper.
      lambda_1: −1 in the paper.
      lambda_2: 1 in the paper.

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

    With PSF = g_A − g of the last sampled step, a step emits

    .. math::
        \begin{cases}
          g_A & \text{if sampled: in the warm-up, or with probability } p, \\
          g + \mathrm{PSF} & \text{in the reuse window after a sample,} \\
          g & \text{otherwise,}
        \end{cases}

    and p follows the ratio ‖PSF‖ / ‖g‖ (``sampling.autoregressive``). Costs 1 + %SAM, that is
    2 / (1 + %SAM) times the speed of SAM; keeps 1.

    Args:
      rho: the radius.
      alpha: α >= 0, how strongly a change of the ratio moves the sampling probability. A larger α
        samples more steps. The paper recommends 0.1 to 1 (0.2 for CIFAR-10, 0.4 for CIFAR-100, 0.8
        for Tiny-ImageNet).
      ema_decay: β in [0, 1), of the moving average of the ratio's relative change.
      segment_length: M, the steps between two changes of p. 50 in the paper; p moves only once a
        segment, so short runs need shorter ones.
      initial_samples: expected samples in the first segment, in [min_samples, M].
      min_samples: least expected samples in a segment, in [0, M].
      warmup_steps: the steps at the start that are all sampled.
      reuse_steps: the steps after a sample that reuse its PSF. 2 is the paper's ARSAM, 0 its
        ablation ARSAM-A without a buffer, a Python number (with optax.inject_hyperparams name it in
        static_args); None reuses until the next sample.
      reuse_dtype: of the buffer, 16 bits or more; None keeps that of the parameters.
      norm_mask: tree of bools, or a function that makes it from the parameters: the leaves over
        which the ratio is measured. With optax.inject_hyperparams name it in static_args.
      seed: of the draws. Two transformations with equal seeds sample the same steps: give each
        player of a GAN its own.

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
    r"""SAM at a price one can set: few samples, evenly spaced, further out, bounded reuse.

    Of all steps a share is sampled, evenly spaced, at the radius :math:`\rho\, share^{-2/3}`: keep
    the ρ tuned for SAM and choose the price. Given ``total_steps``, the radius is
    :math:`\rho\, (1 + (1 / share - 1)\, t / T)` instead, which rises from ρ to ρ / share while the
    learning rate falls. A PSF is scaled down to ‖PSF‖ <= ‖g‖ / √share where it is sampled, so that
    a ρ that is too large for this cannot throw the weights far off. The steps between emit g + PSF
    of the last sample, scaled down to ‖PSF‖ <= κ ‖g‖. Costs 1 + share, keeps 1. share = 1 is SAM.
    Its figures: docs/frontier.md and docs/studies/development.md.

    Args:
      rho: the radius that suits SAM. One of a policy that follows the samples is taken as it is.
      share: of sampled steps, in (0, 1], a Python float; 0.125 if neither it nor ``speedup`` is
        given.
      speedup: in place of ``share``: 2 / (1 + share), in [1, 2).
      total_steps: T >= 1, of the run, where its learning rate falls to nearly 0 along it, as a
        cosine does; None for any other.
      bound: κ > 0; min(0.1, 0.8 share) if None.
      num_microbatches: K takes the samples as ``m_sam`` does, which needs ``example_loss_fn`` and
        ``batch``: 1 + 2 share, or with ``microbatch_grads`` 1 + share and K gradients at once in
        memory. None as SAM.
      reuse_dtype: of the buffer, 16 bits or more; None keeps that of the parameters.
    """
    follows = isinstance(rho, RadiusPolicy) and rho.record is not None
    if not isinstance(rho, RadiusPolicy):
        _check.check_scalar_or_schedule("rho", rho, low=0)  # before the factor
    if speedup is not None:
        _check.check_static("speedup", speedup)
        _check.check_number("speedup", speedup, low=1, below=2)
        if share is not None:
            raise ValueError(f"Give either share or speedup, got {share!r} and {speedup!r}.")
        share = 2 / speedup - 1
    share = 0.125 if share is None else share
    _check.check_static("share", share)
    _check.check_number("share", share, above=0, high=1)
    bound = min(0.1, 0.8 * share) if bound is None else bound
    if total_steps is not None:
        _check.check_integer("total_steps", total_steps, low=1)

    if follows and total_steps is not None:
        raise ValueError(
            f"total_steps raises a radius that is given, this one follows the samples: {rho!r}."
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
    """ρ times a factor, or a schedule of it."""

    def times(base: Any, step: Any) -> Any:
        return jnp.float32(base) * factor(step) if callable(factor) else base * factor

    if isinstance(rho, numbers.Real) and rho == 0:
        return 0.0  # still the number 0, for which every method returns the gradient
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
    r"""ESAM: a random share β of the perturbation, g_A from the share γ of the examples it hurts.

    ε = ρ m g / (β ‖g‖) with a Bernoulli(β) mask m (stochastic weight perturbation), and g_A over
    the γB examples whose loss rises most from w to w + ε (sharpness-sensitive data selection).
    Needs ``example_loss_fn`` and ``batch``. Costs 1 + γ and two forward passes, keeps nothing.
    β = γ = 1 is SAM.

    Args:
      rho: the radius.
      beta: β in (0, 1]; the paper uses 0.5 to 0.6.
      gamma: γ in (0, 1], a Python float; 0.5 in the paper.
      per: draw m per coordinate as in the paper, or per tensor as in its code.
      seed: of the masks.

    References:
      Du et al., Efficient Sharpness-aware Minimization (arXiv 2110.03141).
    """
    direction = optax.chain(ascent.normalize(), ascent.random_mask(beta, per, seed))
    return sharpness_aware(rho, probe=selection.largest_rises(gamma, direction))


def gradient_norm_penalty(rho: RadiusLike, strength: float) -> _Transform:
    r"""Gradient-norm penalty: emits :math:`(1 - a)\, g + a\, \nabla L(w + \rho\, g / \|g\|)`.

    To first order in ρ the gradient of L + λ ‖∇L‖ with λ = a ρ. Costs 2, keeps nothing. a = 1 is
    SAM, a = 0 the base optimizer.

    Args:
      rho: the radius, r in the paper; 0.05 to 0.1 there.
      strength: a = λ / ρ >= 0; 0.6 to 0.8 in the paper.

    References:
      Zhao et al., Penalizing Gradient Norm for Efficiently Improving Generalization
      (arXiv 2202.03599).
    """
    return sharpness_aware(rho, correction=correction.interpolate(strength))


def wsam(rho: RadiusLike, gamma: float = 0.9) -> _Transform:
    r"""WSAM: weighs the sharpness, :math:`g + \alpha\,(g_A - g)` with :math:`\alpha = \gamma /
    (1 - \gamma)`.

    γ > 1/2 weighs it more than SAM does, the default nine times. This link is the coupled form. The
    authors' default takes α (g_A − g) past the base optimizer, whose momentum μ multiplies it by
    1 / (1 − μ) otherwise::

        tx = decouple(wsam(rho), optax.sgd(schedule, momentum=0.9), schedule)

    Costs 2, keeps nothing. γ = 0 is the base optimizer, γ = 1/2 here SAM.

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

    Costs 2, keeps nothing.

    Args:
      rho: the radius in units of the weights: about ten times SAM's, 0.5 to 2.
      eta: η >= 0; 0.01 in the paper.

    References:
      Kwon et al., ASAM (arXiv 2102.11600).
    """
    return sharpness_aware(rho, probe=probes.perturb(ascent.normalize_by_weights(eta)))


def gsam(rho: RadiusLike, alpha: float) -> _Transform:
    r"""GSAM: emits :math:`g_A - \alpha\, g_\perp`, g_⊥ the part of g orthogonal to g_A.

    Costs 2, keeps nothing. α = 0 is SAM.

    Args:
      rho: the radius; the paper lets it follow the learning rate: give a schedule.
      alpha: α >= 0; 0.1 to 0.4 in the paper.

    References:
      Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training
      (arXiv 2203.08065).
    """
    return sharpness_aware(rho, correction=correction.subtract_orthogonal(alpha))


def multi_step_sam(rho: RadiusLike, num_steps: int) -> _Transform:
    r"""Multi-step SAM: n ascent steps of ρ/n each, then the gradient there.

    Costs 1 + n, keeps nothing. n = 1 is SAM.

    Args:
      rho: the radius that the n steps share.
      num_steps: n >= 1, a Python integer.

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
    r"""GAM: first-order flatness, descends :math:`\max_{\|\varepsilon\| \le \rho} \|\nabla L(w +
    \varepsilon)\|` along with L.

    The accelerated form, in which gradients a short way ρ' ahead stand for Hessian-vector products
    (``probe.gradient_norm_aware``). The defaults are the authors' for CIFAR-100. Costs 4, keeps
    nothing. α = 1 and γ = 0 is SAM with the radius ρ'.

    Args:
      rho: the radius of the ball; 0.2 in the authors' code, ``grad_norm_rho`` there.
      grad_rho: ρ' >= 0, or a schedule; 0.02 to 0.04 in the authors' code, a fifth to a tenth of ρ.
      alpha: α in [0, 1], of the gradients ahead the share at w; 0.1 for CIFAR-10, 0.5 to 0.6 for
        CIFAR-100 in the authors' code.
      beta: β in [0, 1], the same of those behind; 0.1, and 0.3 to 0.5.
      gamma: γ >= 0, of what is orthogonal; 0.03 to 0.05.

    References:
      Zhang et al., Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves
      Generalization (arXiv 2303.03108).
    """
    chosen = probes.gradient_norm_aware(grad_rho, alpha=alpha, beta=beta, gamma=gamma)
    return sharpness_aware(rho, probe=chosen)


def momentum_sam(rho: RadiusLike, *, decay: float = 0.9) -> _Transform:
    r"""Momentum-SAM: :math:`g_A = \nabla L(w - \rho\, v / \|v\|)`, v the momentum of the g_A.

    Costs 1 inside jit, where XLA drops the backward pass at w that the caller computes and nothing
    reads (the forward pass stays if the loss there is used); keeps 1.

    Args:
      rho: the radius, several times SAM's: the authors run 3 where SAM has 0.2. On digits 5 times
        SAM's did as well as SAM, SAM's own as SGD, and 15 times learned nothing; elsewhere a search
        took 2 to 8 times (docs/studies/peers.md).
      decay: μ in [0, 1), usually that of the base optimizer.

    References:
      Becker et al., Momentum-SAM (arXiv 2401.12033).
    """
    return sharpness_aware(rho, probe=probes.momentum(decay))


def sampa(
    rho: RadiusLike, learning_rate: optax.ScalarOrSchedule, *, interpolation: float = 0.2
) -> _Transform:
    r"""SAMPa: SAM whose two gradients do not wait for each other.

    :math:`g_A = (1 - \lambda) \nabla L_{t-1}(w + \rho\, d / \|d\|) + \lambda d'` with d the
    gradient kept from the step before, of the mini-batch of that step, and :math:`d' = \nabla
    L_t(w - \eta\, d)` kept for the next (``probe.auxiliary_sequence``). Needs
    ``previous_grad_fn``, the ``grad_fn`` of the mini-batch of the step before. Costs 2 inside jit,
    where XLA drops the backward pass at w that the caller computes and nothing reads; what SAM
    takes one after another may run side by side. It keeps 1.

    Args:
      rho: the radius; 0.1 in the authors' code.
      learning_rate: η >= 0 of the base optimizer, or its schedule.
      interpolation: λ in [0, 1]; 0.2 in the paper.

    References:
      Xie et al., SAMPa: Sharpness-aware Minimization Parallelized (arXiv 2410.10683).
    """
    return sharpness_aware(rho, probe=probes.auxiliary_sequence(learning_rate, interpolation))


def friendly_sam(rho: RadiusLike, *, sigma: float = 1.0, decay: float = 0.9) -> _Transform:
    r"""Friendly SAM: :math:`\varepsilon = \rho\, d / \|d\|` with :math:`d = g - \sigma\, m`.

    m is the moving average of the gradients before this one. Costs 2, keeps 1. σ = 0 is SAM.

    Args:
      rho: the radius; 0.1 to 0.4.
      sigma: σ >= 0; 1 in the paper.
      decay: λ in [0, 1); 0.6 to 0.95 in the paper.

    References:
      Li et al., Friendly Sharpness-Aware Minimization (arXiv 2403.12350).
    """
    direction = optax.chain(ascent.subtract_ema(sigma, decay), ascent.normalize())
    return sharpness_aware(rho, probe=probes.perturb(direction))


def final_phase_sam(rho: RadiusLike, total_steps: int, share: float) -> _Transform:
    """SAM in the last share of the steps, the base optimizer before.

    Costs 1 + share, keeps nothing. share = 1 is SAM.

    Args:
      rho: the radius.
      total_steps: of the run.
      share: in [0, 1].

    References:
      Temperon (arXiv 2609.17575).
    """
    return sharpness_aware(rho, sampling=sampling.final_phase(total_steps, share))


def usam(rho: RadiusLike) -> _Transform:
    r"""Unnormalised SAM: :math:`g_A = \nabla L(w + \rho\, g)`.

    Costs 2, keeps nothing.

    Args:
      rho: in units of a learning rate, not of a length.

    References:
      Andriushchenko and Flammarion, Towards Understanding Sharpness-Aware Minimization
      (arXiv 2206.06232).
    """
    return sharpness_aware(rho, probe=probes.perturb(optax.identity()))


def m_sam(rho: RadiusLike, num_microbatches: int) -> _Transform:
    r"""m-SAM: each of K micro-batches is perturbed on its own.

    :math:`g_A = \frac1K \sum_k \nabla L_k(w + \rho\, g_k / \|g_k\|)`, m = B / K. Needs
    ``example_loss_fn`` and ``batch``. Costs 2 inside jit, where XLA drops the gradient that the
    caller computes and nothing reads (3 outside); keeps nothing. K = 1 is SAM, K = B perturbs for
    each example.

    Args:
      rho: the radius.
      num_microbatches: K, a Python integer that divides the batch size.

    References:
      Foret et al. (arXiv 2010.01412), section 4.1 on m-sharpness.
    """
    return sharpness_aware(rho, probe=probes.microbatched(num_microbatches))


def rw_sam(
    rho: RadiusLike, *, inverse_temperature: float = 1.0, delta: float | None = None, seed: int = 0
) -> _Transform:
    r"""Reweighted SAM: ε from a mean gradient that weighs examples by their gradient norms.

    :math:`p_i \propto \exp(\lambda n_i / \bar n)`, n_i an estimate of ‖∇ℓ_i‖: the slope of ℓ_i
    along one random direction (``probe.reweighted``). Needs ``example_loss_fn`` and ``batch``.
    Costs 2 and two forward passes (one with ``delta``) inside jit, where XLA drops the gradient
    that the caller computes and nothing reads; keeps nothing. λ = 0 is SAM.

    Args:
      rho: the radius.
      inverse_temperature: λ >= 0, without unit.
      delta: None for the exact slope; δ > 0 takes it from the losses at w and w + δz, as a loss
        with a ``jax.custom_vjp`` inside needs.
      seed: of the random directions.

    References:
      Luo et al., Reweighted SAM (arXiv 2509.18001).
    """
    return sharpness_aware(
        rho, probe=probes.reweighted(inverse_temperature, delta=delta, seed=seed)
    )


def k_sam(rho: RadiusLike, share: float = 0.5) -> _Transform:
    r"""K-SAM: SAM on the K examples of the batch with the largest losses.

    :math:`g_A = \nabla L_K(w + \rho\, \nabla L_K / \|\nabla L_K\|)`, L_K their mean loss, K =
    max(1, round(share · B)) (``selection.largest_losses``). Needs ``example_loss_fn`` and
    ``batch``. Costs 2 share and a forward pass of the batch inside jit, where XLA drops the
    gradient that the caller computes and nothing reads; keeps nothing. share = 1 is SAM.

    Args:
      rho: the radius.
      share: K / B in (0, 1], a Python float; with ``axis_name``, of each device's examples.

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
    r"""AUSAM: SAM on a part of the batch, drawn by how much ε has changed the examples' losses.

    The weight of an example is its mean ``|Δloss|`` under ε so far, scaled within the batch to
    [f_min, f_t], where f_t rises from f_min to f_max; the first epoch takes the whole batches
    (``selection.largest_changes``). Needs ``example_loss_fn``, ``batch`` and ``example_index``.
    Costs 2 share (2 in the first epoch) inside jit, where XLA drops the gradient that the caller
    computes and nothing reads; keeps no buffer like the parameters, but 8 bytes for each example
    of the data set. share = 1 is SAM.

    Args:
      rho: the radius; 0.1 in the authors' code.
      num_examples: the size of the data set, a Python integer.
      steps_per_epoch: >= 1.
      share: of the examples, in (0, 1], a Python float; with ``axis_name``, of each device's.
      rise_epochs: > 0, in which f_t rises; 30 in the authors' code, for 200 epochs.
      min_weight: f_min > 0.
      max_weight: f_max >= f_min.
      seed: of the draws.

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

    Costs 2, and at each refresh what the mask costs; keeps the mask, one byte a weight. Sparsity 0
    is SAM. It is the explicit form, which saves no computation: see ``arsam_jax.sparse``.

    Args:
      rho: the radius of the dense perturbation.
      sparsity: share of the weights without perturbation, in [0, 1); 0.5 in the paper.
      mask: makes the mask from the sparsity: ``sparse.fisher_mask`` (SSAM-F, needs
        ``example_loss_fn``, and ``batch`` or better ``fisher_batch``, random training examples),
        or for instance ``lambda sparsity: sparse.dynamic_mask(sparsity, total_steps)`` (SSAM-D).

    References:
      Mi et al. (arXiv 2210.05177) and its official code; docs/methods.md lists what differs.
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
