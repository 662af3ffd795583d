"""Probes: how the perturbed gradient of a sampled step is taken."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from arsam_jax import _check, _devices, _random, _tree
from arsam_jax._examples import example_loss
from arsam_jax._repr import describe, described
from arsam_jax.ascent import normalize
from arsam_jax.microbatches import split

_EXAMPLE_CALL = """
    def previous_grad_fn(params):  # the previous mini-batch; on the first step any
        return jax.grad(loss_fn)(params, previous_batch)
    tx.update(grads, opt_state, params, grad_fn=grad_fn, previous_grad_fn=previous_grad_fn)"""


class Probe(NamedTuple):
    """Takes the perturbed gradient. A pair of pure functions.

    Attributes:
      init: ``params -> state``.
      update: ``(grads, state, params, *, rho, step, grad_fn, **extra_args) -> (perturbed_grads,
        state)``, called on sampled steps only. ``grads`` and ``perturbed_grads`` are shaped like
        ``params``; ``grads`` have at least float32. ``rho`` is a number or a scalar array,
        ``step`` an int32 scalar. ``grad_fn`` accepts parameters in at least float32, and
        ``extra_args`` are the other extra arguments of the step.
      reads_grads: False if ``update`` does not read ``grads``. If the correction does not read them
        either, the policy records nothing and every step is sampled, then ``grads`` is None, and
        XLA drops the clean backward pass.
      whole_batch: False if the perturbed gradient is taken on other examples than ``grads``, so
        that their difference does not vanish with ρ.
      name: of the probe, with its arguments, for ``repr``.
    """

    init: Callable[..., Any]
    update: Callable[..., tuple[Any, Any]]
    reads_grads: bool = True
    whole_batch: bool = True
    name: str = ""

    def __repr__(self) -> str:
        return describe(self)


@described
def perturb(
    ascent: optax.GradientTransformation = normalize(),  # noqa: B008
    *,
    mask: Any = None,
) -> Probe:
    r"""The gradient at the perturbed point, :math:`\nabla L(w + \rho\,\mathrm{ascent}(g))`.

    ``w + ε`` is computed in at least float32, so ``grad_fn`` receives float32 parameters if the
    parameters are bfloat16 or float16. Rounded to those, a perturbation of the usual size would
    mostly vanish and lose its direction.

    Args:
      ascent: maps the gradient to the direction of the perturbation.
      mask: which parameters are perturbed: a function from parameters to a tree of bools (see
        ``arsam_jax.masks``), or such a tree; None for all. The ascent gets the gradient of the
        others as 0. They enter ``grad_fn`` unchanged, so that XLA need not compute again, inside
        jit and without a ``lax.cond``, what depends on them alone.

    Returns:
      A probe that costs one evaluation of ``grad_fn`` and keeps only the state of ``ascent``.

    Raises:
      ValueError: when it is used, for a mask that is not a tree of bools like the parameters, or
        that selects none of them.
    """
    return multi_step(1, ascent, mask=mask)


@described
def multi_step(
    num_steps: int,
    ascent: optax.GradientTransformation = normalize(),  # noqa: B008
    *,
    mask: Any = None,
) -> Probe:
    r"""Repeats the ascent, :math:`w_{j+1} = w_j + (\rho / n)\,\mathrm{ascent}(\nabla L(w_j))`.

    The gradient at w_n is the perturbed gradient. The n steps share the radius, so n = 1 is
    ``perturb``.

    Args:
      num_steps: n >= 1, a Python integer.
      ascent: maps a gradient to a direction.
      mask: which parameters are perturbed, see ``perturb``.

    Returns:
      A probe that costs n evaluations of ``grad_fn``.
    """
    _check.check_static("num_steps", num_steps)
    _check.check_integer("num_steps", num_steps, low=1)
    num_steps = int(num_steps)  # It may be a NumPy integer.
    if isinstance(mask, bool | jax.Array):  # what optax.inject_hyperparams makes of a function
        allowed = "a tree of bools like the parameters, or a function that returns one"
        _check.check_static("mask", jnp.asarray(mask), allowed)
    ascent = _check.checked_ascent(ascent)

    def init_fn(params):
        if mask is not None:
            _check.checked_mask(mask, params)  # Raises for a wrong mask.
        return ascent.init(params)

    def update_fn(grads, state, params, /, *, rho, grad_fn, **extra_args):
        is_perturbed = None if mask is None else _check.checked_mask(mask, params)

        def climb(carry, _):
            point, grads, state = carry
            if is_perturbed is not None:
                grads = jax.tree.map(
                    lambda keep, g: g if keep else jnp.zeros_like(g), is_perturbed, grads
                )
            direction, state = ascent.update(
                grads, state, point, rho=rho, grad_fn=grad_fn, **extra_args
            )
            moved = _tree.add(point, _tree.scale(rho / num_steps, direction))
            if is_perturbed is not None:
                moved = jax.tree.map(
                    lambda keep, new, old: new if keep else old, is_perturbed, moved, point
                )
            point = moved
            return (point, _tree.cast_like(grad_fn(point), grads), state), None

        carry = (_tree.widen(params), grads, state)
        if num_steps == 1:
            (_, perturbed_grads, state), _ = climb(carry, None)
        else:
            (_, perturbed_grads, state), _ = jax.lax.scan(climb, carry, length=num_steps)
        return perturbed_grads, state

    return Probe(init_fn, update_fn)


@described
def gradient_norm_aware(
    grad_rho: optax.ScalarOrSchedule = 0.02,
    *,
    alpha: Any = 0.6,
    beta: Any = 0.5,
    gamma: Any = 0.03,
    ascent: optax.GradientTransformation = normalize(),  # noqa: B008
) -> Probe:
    r"""GAM: descends the largest gradient norm in a ball (first-order flatness).

    With ρ' = ``grad_rho``, g_0 the gradient at w and ascent(g) = g/‖g‖,

    .. math::
        g_1 &= \nabla L(w + \rho' g_0 / \|g_0\|) &
        w_2 &= w + \rho\, (g_1 - g_0) / \|g_1 - g_0\| \\
        g_2 &= \nabla L(w_2) &
        g_3 &= \nabla L(w_2 + \rho' g_2 / \|g_2\|) \\
        h_+ &= \alpha g_1 + (1 - \alpha) g_3 &
        h_- &= g_0 + (1 - \beta)\, g_2,

    and the perturbed gradient is :math:`h_+ - \gamma h_\perp`, with h_⊥ the part of ``h_-``
    orthogonal to ``h_+``. The finite difference g_1 − g_0 is ρ' times the gradient of ‖∇L‖, so w_2
    is the point within ρ where ‖∇L‖ is largest, and g_3 − g_2 descends ‖∇L‖ there. In the paper the
    weight of g_0 in ``h_-`` is β. In the authors' code it is 1, as here.

    Args:
      grad_rho: ρ' >= 0, the length of the finite differences, or a schedule.
      alpha: α in [0, 1]; 1 (with γ = 0) is ``perturb`` at the radius ρ'.
      beta: β in [0, 1].
      gamma: γ >= 0.
      ascent: maps a gradient to a direction.

    Returns:
      A probe that costs three evaluations of ``grad_fn``.

    References:
      Zhang et al., Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves
      Generalization (arXiv 2303.03108), algorithm 2, and its official code.
    """
    _check.check_scalar_or_schedule("grad_rho", grad_rho, low=0)
    _check.check_number("alpha", alpha, low=0, high=1)
    _check.check_number("beta", beta, low=0, high=1)
    _check.check_number("gamma", gamma, low=0)
    ascent = _check.checked_ascent(ascent)

    def update_fn(grads, state, params, /, *, rho, step, grad_fn, **extra_args):
        def climb(point, grads, state, radius):
            direction, state = ascent.update(
                grads, state, point, rho=radius, step=step, grad_fn=grad_fn, **extra_args
            )
            point = _tree.add(point, _tree.scale(radius, direction))
            return point, _tree.cast_like(grad_fn(point), grads), state

        difference = grad_rho(step) if callable(grad_rho) else grad_rho
        w = _tree.widen(params)
        _, g_1, state = climb(w, grads, state, difference)
        w_2, g_2, state = climb(w, _tree.subtract(g_1, grads), state, rho)
        _, g_3, state = climb(w_2, g_2, state, difference)
        ahead = _tree.add(_tree.scale(alpha, g_1), _tree.scale(1 - alpha, g_3))
        behind = _tree.add(grads, _tree.scale(1 - beta, g_2))
        orthogonal = _tree.reject(behind, ahead)
        return _tree.add(ahead, _tree.scale(-gamma, orthogonal)), state

    return Probe(ascent.init, update_fn)


@described
def microbatched(
    num_microbatches: int,
    ascent: optax.GradientTransformation = normalize(),  # noqa: B008
) -> Probe:
    r"""m-SAM: each micro-batch is perturbed by its own gradient, :math:`\frac1K \sum_k \nabla L_k(w
    + \rho\,\mathrm{ascent}(\nabla L_k(w)))`.

    The K micro-batches of m = B / K examples are those of ``microbatches.split`` and run one after
    another. K = 1 is SAM, K = B perturbs separately for each example. Needs ``example_loss_fn`` and
    ``batch``.

    If ``microbatch_grads`` is passed, the third result of ``microbatches.value_and_grad``, the
    gradients :math:`\nabla L_k(w)` are not evaluated again. They must belong to the same
    micro-batches, which ``check_wiring`` compares.

    Args:
      num_microbatches: K, a divisor of the batch size.
      ascent: maps the gradient of a micro-batch to a direction.

    Returns:
      A probe that costs two gradients of the whole batch (one with ``microbatch_grads``) and does
      not read ``grads``.
    """
    _check.check_static("num_microbatches", num_microbatches)
    _check.check_integer("num_microbatches", num_microbatches, low=1)
    ascent = _check.checked_ascent(ascent)

    def update_fn(
        grads,
        state,
        params,
        /,
        *,
        rho,
        grad_fn,
        example_loss_fn=None,
        batch=None,
        microbatch_grads=None,
        **extra_args,
    ):
        del grad_fn
        axis_name = extra_args.get("axis_name")
        loss_fn, _ = example_loss(example_loss_fn, batch, axis_name)
        parts = split(batch, num_microbatches)
        if microbatch_grads is not None:
            stacked = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(
                    (num_microbatches, *jnp.shape(x)), jnp.result_type(x)
                ),
                params,
            )
            differing = _check.differing_shapes(microbatch_grads, stacked)
            if differing:
                raise ValueError(
                    "microbatch_grads must hold the gradients of num_microbatches ="
                    f" {num_microbatches} micro-batches along a first axis, as"
                    f" arsam_jax.microbatches.value_and_grad gives them, got {differing}."
                )
            microbatch_grads = _devices.local_to(axis_name, microbatch_grads)
        if axis_name is not None and any(x.dtype != jnp.uint32 for x in jax.tree.leaves(state)):
            raise ValueError(
                "microbatched with axis_name needs an ascent without state (but for keys): the"
                " devices see different micro-batches, and their states would drift apart."
            )
        params = _devices.local_to(axis_name, _tree.widen(params))

        def add_part(carry, of_part):
            (total, state), (part, part_grads) = carry, of_part
            part_grad_fn = _tree.gradient(lambda params: loss_fn(params, part).mean())
            direction, state = ascent.update(
                _tree.widen(part_grad_fn(params) if part_grads is None else part_grads),
                state,
                params,
                rho=rho,
                grad_fn=part_grad_fn,
                example_loss_fn=example_loss_fn,
                batch=part,
                **extra_args,
            )
            point = _tree.add(params, _tree.scale(rho, direction))
            return (_tree.add(total, part_grad_fn(point)), state), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        (total, state), _ = jax.lax.scan(add_part, (zeros, state), (parts, microbatch_grads))
        mean = _tree.scale(1 / num_microbatches, total)
        return _devices.mean_over(axis_name, mean), state

    return Probe(ascent.init, update_fn, reads_grads=False)


class KeyedState(NamedTuple):
    """State of a probe that draws random numbers.

    Attributes:
      key: uint32 (2,), folded with the step for each draw.
      ascent: state of the ascent.
    """

    key: jax.Array
    ascent: Any


@described
def reweighted(
    inverse_temperature: float,
    *,
    delta: float | None = None,
    ascent: optax.GradientTransformation = normalize(),  # noqa: B008
    seed: int = 0,
) -> Probe:
    r"""RW-SAM: the perturbation follows the examples with large gradients.

    .. math::
        \varepsilon = \rho\,\mathrm{ascent}\Big(\sum_i p_i \nabla\ell_i(w)\Big), \quad
        p_i \propto \exp(\lambda n_i / \bar n), \quad
        n_i = |\langle\nabla\ell_i(w), z\rangle|,

    with one random direction z, ‖z‖ = 1, for the batch. The perturbed gradient is that of the plain
    mean loss at w + ε. n_i is a noisy estimate of ‖∇ℓ_i‖: the slope along z, which is proportional
    to ‖∇ℓ_i‖ on average over z only. Dividing by the mean n̄ of the batch makes λ independent of
    the scale of the loss. (The authors' own normalization could not be read.) Needs
    ``example_loss_fn`` and ``batch``.

    The slope is taken by forward-mode differentiation, which costs two forward passes and is exact
    in any precision. With ``delta`` it is the authors' difference ``|ℓ_i(w + δz) − ℓ_i(w)| / δ``,
    which costs one forward pass and which a loss with a ``jax.custom_vjp`` inside needs. δ = 0.01
    suits float32 only. If the loss computes in bfloat16, or multiplies matrices in bfloat16 as TPUs
    do by default, the difference is noise and δ has to be about 1.

    Args:
      inverse_temperature: λ >= 0; 0 is SAM.
      delta: δ > 0, the length of a random step; None for the exact slope.
      ascent: maps the weighted gradient to a direction.
      seed: of z.

    Returns:
      A probe that costs two gradients and two forward passes (one with ``delta``) and does not read
      ``grads``.

    References:
      Luo et al., Reweighted SAM (arXiv 2509.18001).
    """
    _check.check_number("inverse_temperature", inverse_temperature, low=0)
    if delta is not None:
        _check.check_number("delta", delta, above=0)
    _check.check_seed(seed)
    ascent = _check.checked_ascent(ascent)

    def init_fn(params):
        return KeyedState(_random.make_key(seed, "probe.reweighted"), ascent.init(params))

    def update_fn(
        grads,
        state,
        params,
        /,
        *,
        rho,
        step,
        grad_fn,
        example_loss_fn=None,
        batch=None,
        **extra_args,
    ):
        axis_name = extra_args.get("axis_name")
        loss_fn, _ = example_loss(example_loss_fn, batch, axis_name)
        params = _tree.widen(params)
        z = optax.tree.random_like(_random.step_key(state.key, step), params)
        z = _tree.scale(_tree.safe_divide(1.0, _tree.norm(z)), z)

        def losses_at(params):
            losses = loss_fn(params, batch)
            return losses.astype(_tree.wide_dtype(losses))

        def slopes(params):
            if delta is None:
                return jax.jvp(losses_at, (params,), (_devices.local_to(axis_name, z),))[1]
            moved = _tree.add(params, _tree.scale(delta, z))
            difference = losses_at(moved) - losses_at(params)
            return difference / jnp.asarray(delta, difference.dtype)

        def weighted_loss(params):
            norms = jnp.abs(slopes(jax.lax.stop_gradient(params)))
            scale = _tree.safe_divide(jnp.asarray(inverse_temperature, norms.dtype), norms.mean())
            return jnp.sum(jax.nn.softmax(scale * norms) * losses_at(params))

        weighted_grads = _tree.gradient(weighted_loss)(_devices.local_to(axis_name, params))
        direction, ascent_state = ascent.update(
            _devices.mean_over(axis_name, _tree.widen(weighted_grads)),
            state.ascent,
            params,
            rho=rho,
            step=step,
            grad_fn=grad_fn,
            example_loss_fn=example_loss_fn,
            batch=batch,
            **extra_args,
        )
        perturbed_grads = grad_fn(_tree.add(params, _tree.scale(rho, direction)))
        return perturbed_grads, KeyedState(state.key, ascent_state)

    return Probe(init_fn, update_fn, reads_grads=False)


class MomentumState(NamedTuple):
    """State of ``momentum``.

    Attributes:
      momentum: v, the momentum of the perturbed gradients, shaped like the parameters.
    """

    momentum: Any


@described
def momentum(decay: float = 0.9) -> Probe:
    r"""Momentum-SAM: the perturbation follows the momentum, so there is no second gradient.

    .. math::
        g_A = \nabla L(w - \rho\, v / \|v\|), \qquad v \leftarrow \mu v + g_A.

    The sign is that of the authors' paper and code: a step along the momentum has overshot where
    the curvature is high. Keeps one buffer shaped like the parameters.

    Args:
      decay: μ in [0, 1), usually that of the base optimizer.

    Returns:
      A probe that costs one gradient and does not read ``grads``, whose computation XLA then drops.

    References:
      Becker et al., Momentum-SAM (arXiv 2401.12033).
    """
    _check.check_number("decay", decay, low=0, below=1)

    def init_fn(params):
        return MomentumState(jax.tree.map(jnp.zeros_like, _tree.widen(params)))

    def update_fn(grads, state, params, /, *, rho, grad_fn, **extra_args):
        del grads, extra_args
        norm = _tree.norm(state.momentum)
        scale = jnp.asarray(-rho, norm.dtype) * _tree.safe_divide(1.0, norm)
        point = _tree.add(_tree.widen(params), _tree.scale(scale, state.momentum))
        perturbed_grads = grad_fn(point)
        velocity = _tree.add(_tree.scale(decay, state.momentum), perturbed_grads)
        return perturbed_grads, MomentumState(velocity)

    return Probe(init_fn, update_fn, reads_grads=False)


class MovingAverageState(NamedTuple):
    """State of ``moving_average``.

    Attributes:
      direction: e, the moving average of the directions, shaped like the parameters.
      ascent: state of the ascent.
    """

    direction: Any
    ascent: Any


@described
def moving_average(
    decay: float = 0.1,
    ascent: optax.GradientTransformation = normalize(),  # noqa: B008
) -> Probe:
    r"""The perturbation is the average of those of earlier steps, so there is no second gradient.

    .. math::
        g_A = \nabla L(w + \rho\, e), \qquad
        e \leftarrow \mu e + (1 - \mu)\, \mathrm{ascent}(g_A).

    With ``ascent.merged_lora`` it is EFMLoRA. With μ = 0 each step is perturbed along the gradient
    of the step before, which is AsyncSAM on one device. (AsyncSAM itself takes that gradient at the
    unperturbed parameters, on another device: pass it to ``along_direction``.) The first step takes
    the gradient at w. Keeps one buffer shaped like the parameters, in at least float32.

    Args:
      decay: μ in [0, 1); 0.1 in EFMLoRA's code, which calls 1 − μ the decay.
      ascent: maps the perturbed gradient to the direction that is averaged.

    Returns:
      A probe that costs one gradient and does not read ``grads``, whose computation XLA then drops.

    Example::

        probe = arsam_jax.probe.moving_average(decay=0)
        tx = optax.chain(arsam_jax.sharpness_aware(0.1, probe=probe), optax.sgd(0.1))

    References:
      Deng et al., EFMLoRA (arXiv 2508.00522) and the authors' code, which averages ρ e instead of
      e: the same for a constant ρ. AsyncSAM (arXiv 2503.11147).
    """
    _check.check_number("decay", decay, low=0, below=1)
    ascent = _check.checked_ascent(ascent)

    def init_fn(params):
        zeros = jax.tree.map(jnp.zeros_like, _tree.widen(params))
        return MovingAverageState(zeros, ascent.init(params))

    def update_fn(grads, state, params, /, *, rho, grad_fn, **extra_args):
        del grads
        point = _tree.add(_tree.widen(params), _tree.scale(rho, state.direction))
        perturbed_grads = _tree.cast_like(grad_fn(point), point)
        latest, ascent_state = ascent.update(
            perturbed_grads, state.ascent, point, rho=rho, grad_fn=grad_fn, **extra_args
        )
        average = _tree.add(
            _tree.scale(decay, state.direction),
            _tree.scale(1 - decay, _tree.cast_like(latest, point)),
        )
        return perturbed_grads, MovingAverageState(average, ascent_state)

    return Probe(init_fn, update_fn, reads_grads=False)


@described
def along_direction(
    ascent: optax.GradientTransformation = normalize(),  # noqa: B008
) -> Probe:
    r"""The perturbation is along a direction that the caller gives: no second gradient.

    :math:`g_A = \nabla L(w + \rho\,\mathrm{ascent}(d))` with the extra argument ``direction`` of
    the update, d, shaped like the parameters, of any floating dtype. It is read as a direction in
    which the loss rises, such as a gradient. On several devices it must be the same on each.

    * AsyncSAM: d is the gradient of an earlier step, from another device or a smaller batch.
    * FedLESAM: d is the last but one global model minus the last one, on every local step.

    Args:
      ascent: maps d to the direction of the perturbation.

    Returns:
      A probe that costs one gradient and does not read ``grads``, whose computation XLA then drops.
      It keeps only the state of ``ascent``.

    Raises:
      ValueError: when it is used, without ``direction`` or for one of another structure or shape.

    Example::

        tx = optax.chain(
            arsam_jax.sharpness_aware(0.1, probe=arsam_jax.probe.along_direction()), optax.sgd(0.1)
        )
        updates, opt_state = tx.update(
            grads, opt_state, params, grad_fn=grad_fn, direction=previous_grads
        )

    References:
      AsyncSAM (arXiv 2503.11147); Fan et al., Locally Estimated Global Perturbations are Better
      than Local Perturbations for Federated Sharpness-aware Minimization (FedLESAM, ICML 2024).
    """
    ascent = _check.checked_ascent(ascent)

    def update_fn(grads, state, params, /, *, rho, grad_fn, direction=None, **extra_args):
        del grads
        if direction is None:
            raise _check.MissingArgumentError(
                "direction",
                "This method needs direction, shaped like params:\n"
                "    tx.update(grads, opt_state, params, grad_fn=grad_fn, direction=direction)",
            )
        _check.check_same_shapes("direction", direction, "params", params)
        point = _tree.widen(params)
        towards, state = ascent.update(
            _tree.cast_like(direction, point), state, point, rho=rho, grad_fn=grad_fn, **extra_args
        )
        return grad_fn(_tree.add(point, _tree.scale(rho, towards))), state

    return Probe(ascent.init, update_fn, reads_grads=False)


class AuxiliarySequenceState(NamedTuple):
    """State of ``auxiliary_sequence``.

    Attributes:
      grads: d, the gradient at the last auxiliary point, shaped like the parameters.
    """

    grads: Any


@described
def auxiliary_sequence(
    learning_rate: optax.ScalarOrSchedule, interpolation: chex.Numeric = 0.2
) -> Probe:
    r"""SAMPa: two gradients that do not depend on each other.

    With d the gradient kept from the previous step and its mini-batch,

    .. math::
        g_A = (1 - \lambda) \nabla L_{t-1}(w + \rho\, d / \|d\|) + \lambda d', \qquad
        d' = \nabla L_t(w - \eta\, d),

    and d' is kept for the next step. Each mini-batch is used twice: when it is new, its gradient is
    taken at the auxiliary point w − η d; one step later it is perturbed along that gradient. This
    needs ``previous_grad_fn``, the ``grad_fn`` of the previous mini-batch, because a perturbation
    along the gradient of another mini-batch has little of SAM's effect. On the first step d is 0
    and both gradients are taken at w. The same holds where ρ(t) is not positive.

    Args:
      learning_rate: η >= 0, that of the base optimizer, or its schedule.
      interpolation: λ in [0, 1]; 0.2 in the paper. 0 is the paper's plain SAMPa. 1 with η = 0 has
        no perturbation.

    Returns:
      A probe that costs two gradients and does not read ``grads``, whose computation XLA then
      drops. It keeps one buffer shaped like the parameters.

    References:
      Xie et al., SAMPa: Sharpness-aware Minimization Parallelized (arXiv 2410.10683).
    """
    _check.check_scalar_or_schedule("learning_rate", learning_rate, low=0)
    _check.check_number("interpolation", interpolation, low=0, high=1)

    def init_fn(params):
        return AuxiliarySequenceState(jax.tree.map(jnp.zeros_like, _tree.widen(params)))

    def update_fn(
        grads, state, params, /, *, rho, step, grad_fn, previous_grad_fn=None, **extra_args
    ):
        del extra_args
        if previous_grad_fn is None:
            message = f"This method needs previous_grad_fn.\n{_EXAMPLE_CALL}"
            raise _check.MissingArgumentError("previous_grad_fn", message)
        previous_grad_fn = _check.checked_grad_fn("previous_grad_fn", previous_grad_fn)
        rate = learning_rate(step) if callable(learning_rate) else learning_rate
        rate = jnp.where(jnp.greater(rho, 0), rate, 0)
        norm = _tree.norm(state.grads)
        climb = jnp.asarray(rho, norm.dtype) * _tree.safe_divide(1.0, norm)
        w = _tree.widen(params)
        ahead = grad_fn(_tree.add(w, _tree.scale(-rate, state.grads)))
        perturbed = previous_grad_fn(_tree.add(w, _tree.scale(climb, state.grads)))
        ahead, perturbed = (_tree.cast_like(x, state.grads) for x in (ahead, perturbed))
        mixed = _tree.add(
            _tree.scale(1 - interpolation, perturbed), _tree.scale(interpolation, ahead)
        )
        return mixed, AuxiliarySequenceState(ahead)

    return Probe(init_fn, update_fn, reads_grads=False, whole_batch=False)
