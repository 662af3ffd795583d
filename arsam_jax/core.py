"""The core: joins radius, probe, sampling and correction with one ``lax.cond``."""

import contextlib
import functools
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from arsam_jax import _check, _devices, _tree
from arsam_jax._convolutions import fast_convolutions
from arsam_jax.correction import NEVER, Correction, Kept, replace
from arsam_jax.probe import Probe, perturb
from arsam_jax.radius import RadiusLike, RadiusPolicy
from arsam_jax.sampling import SamplingPolicy, always
from arsam_jax.state import Metrics, SharpnessAwareState

_EXAMPLE_CALL = """
    def grad_fn(params):  # the same mini-batch, the same dropout key
        return jax.grad(loss_fn)(params, batch)
    updates, opt_state = tx.update(grad_fn(params), opt_state, params, grad_fn=grad_fn)"""


def sharpness_aware(
    rho: RadiusLike,
    *,
    probe: Probe = perturb(),  # noqa: B008
    sampling: SamplingPolicy = always(),  # noqa: B008
    correction: Correction = replace(),  # noqa: B008
) -> optax.GradientTransformationExtraArgs:
    """Turns gradients into sharpness-aware gradients: radius × probe × sampling × correction.

    Put the transformation first in a chain, in front of the base optimizer. It takes gradients and
    returns gradients. A step evaluates one gradient, and on sampled steps also what the probe
    costs, for most methods one more gradient. A single ``lax.cond`` chooses, so a step that is not
    sampled does not pay for the probe.

    ``update(grads, state, params, *, grad_fn, **extra_args)`` takes these extra arguments. All of
    them can always be passed, and methods ignore the ones they do not use.

    * ``grad_fn(params) -> grads`` evaluates the same mini-batch with the same dropout key as
      ``grads``. Gradients are averaged over devices, and conjugated for complex parameters, as
      optax expects them. It receives parameters in at least float32.
    * ``value_fn(params) -> loss`` can be passed instead of ``grad_fn``.
    * ``example_loss_fn(params, batch) -> losses`` of shape (batch,), and ``batch``: for methods
      that evaluate single examples. Under ``pmap`` and ``shard_map`` these also need ``axis_name``,
      over which they average the gradients that they take themselves. Fisher masks accept
      ``fisher_batch`` as well.
    * ``example_index``, int (batch,): the positions of the examples in the data set, for AUSAM.
    * ``previous_grad_fn``: the ``grad_fn`` of the previous mini-batch, for SAMPa.
    * ``direction``, shaped like the parameters: for methods that perturb along a given direction.
    * ``microbatch_grads``: the gradients of the micro-batches, if the step has them, for m-SAM.
    * ``measure``, a Python bool: True fills all of ``Metrics``.

    With the number 0 for ``rho``, or a policy that never samples, ``update`` returns the gradients
    it was given, so the base optimizer runs unchanged, bit for bit. Where a schedule of ρ is 0 (or
    negative), no second gradient is evaluated and none is reused. The returned gradient then has
    the values of the clean one, but the compiler may round it differently in the last bit, because
    the ``lax.cond`` is part of the program. Probes that do not read the gradient (see ``Probe``)
    are evaluated on those steps, too. Where ρ is NaN, NaN is returned.

    Non-finite gradients are returned as non-finite numbers, so that ``optax.apply_if_finite``
    further down the chain sees them. They change no part of the state except counters and the
    record of evaluated gradients.

    Under ``vmap`` the decision has to be the same for all elements, or the ``lax.cond`` becomes a
    ``select`` and every step costs two gradients. Put the whole run inside the ``vmap``: decisions
    that depend on the step and the seed alone then stay unbatched. These are the decisions of all
    methods except ``arsam`` and ``ae_sam``, which follow the gradients. For these two, pass the
    ``axis_name`` of the ``vmap`` to ``update``: a step is then sampled for all elements if one of
    them asks for it. Do not pass the axis of an ensemble to methods that take ``example_loss_fn``,
    which average their gradients over ``axis_name``. If only the train step is mapped, the state is
    batched; pass ``axis_name`` in this case as well.

    Args:
      rho: the radius ρ >= 0 of the perturbation: a number, a schedule ``step -> ρ``, or a policy of
        ``arsam_jax.radius``.
      probe: how the second gradient is taken.
      sampling: on which steps it is taken.
      correction: which gradient is returned, and what is kept for later steps.

    Returns:
      A transformation whose ``update`` needs ``params`` and ``grad_fn`` (or ``value_fn``).

    Raises:
      TypeError, ValueError: at construction for a bad argument, and when ``update`` is traced for a
        missing or wrong extra argument. The message names the argument.

    Example::

        tx = optax.chain(sharpness_aware(0.1), optax.sgd(0.1, momentum=0.9))
        updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)
    """
    for name, part, kind in (
        ("probe", probe, Probe),
        ("sampling", sampling, SamplingPolicy),
        ("correction", correction, Correction),
    ):
        if not isinstance(part, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {part!r}.")
    radius = rho if isinstance(rho, RadiusPolicy) else _policy_of(rho)
    if radius.record is not None and not probe.whole_batch:
        raise ValueError(
            "rho must be a number or a schedule for this method, got the policy"
            f" {rho!r}. The policy follows the difference between the perturbed gradient and the"
            " gradient, and this probe takes the perturbed gradient on other examples."
        )
    parts = _Parts(radius, probe, sampling, correction)

    def init_fn(params):
        _check.check_arrays("params", params)
        params = jax.tree.map(_array_of, params)
        dtypes = {jnp.result_type(x) for x in jax.tree.leaves(params)}
        if not all(jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes):
            raise ValueError(
                "params must be floating point or complex arrays, got the dtypes"
                f" {sorted(map(str, dtypes))}. Keep integers, counters and keys elsewhere. For an"
                " Equinox model pass eqx.filter(model, eqx.is_inexact_array), not eqx.is_array."
            )
        params = _tree.strong(params)
        return SharpnessAwareState(
            step=jnp.zeros([], jnp.int32),
            age=jnp.full([], NEVER, jnp.int32),
            radius=radius.init(params),
            probe=probe.init(params),
            sampling=sampling.init(),
            correction=correction.init(params),
            metrics=Metrics.zeros(),
        )

    def update_fn(
        updates,
        state,
        params=None,
        *,
        grad_fn=None,
        value_fn=None,
        measure=False,
        **extra_args,
    ):
        if not isinstance(measure, bool):
            raise TypeError(f"measure must be a Python bool, got {measure!r}.")
        grad_fn = _resolve_grad_fn(updates, params, grad_fn, value_fn)
        given, updates, params = updates, _tree.strong(updates), _tree.strong(params)
        decision = _decide(parts, rho, state, updates, params, extra_args.get("axis_name"))
        age = jnp.where(state.age < NEVER, state.age + 1, state.age)
        if decision.sampled is False:  # on no step at all: nothing is computed, every bit is kept
            return given, _unsampled_state(state, updates, decision, age, measure)
        extra_args |= {"rho": decision.rho, "step": state.step, "grad_fn": grad_fn}
        fresh = functools.partial(_fresh, parts, state, updates, extra_args, decision, measure)
        stale = functools.partial(_stale, parts, state, updates, age, decision.rho)
        result = _branch(decision.sampled, fresh, stale, state.step, params)
        return _returned(state, updates, result), _next_state(
            parts, state, updates, decision, result, age, measure
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _policy_of(rho: optax.ScalarOrSchedule) -> RadiusPolicy:
    _check.check_scalar_or_schedule("rho", rho, low=0)
    return RadiusPolicy(lambda params: (), lambda _, step: rho(step) if callable(rho) else rho)


class _Parts(NamedTuple):
    radius: RadiusPolicy
    probe: Probe
    sampling: SamplingPolicy
    correction: Correction

    @property
    def records(self) -> bool:
        return self.sampling.record is not None or self.radius.record is not None


class _Decision(NamedTuple):
    rho: Any  # of this step
    sampled: Any  # a Python bool if nothing in the step can change it
    is_unread: bool  # whether no part reads the gradient
    policy_state: Any


class _Result(NamedTuple):
    """What leaves the branches of the ``lax.cond``."""

    tree: Any  # the kept tree d, or the gradient to return if nothing is kept
    norm: Any  # of the kept tree, if the correction stores it
    coefficients: Any  # a and b of the returned gradient a g + b d, or None if nothing is kept
    probe: Any
    is_accepted: jax.Array  # whether a perturbed gradient was taken, and stored if it had to be
    recorded: tuple  # for the sampling policy: ‖g‖ and ‖PSF‖
    recorded_whole: tuple  # the same over all leaves, for the radius policy
    measured: tuple  # the last three of the metrics


def _decide(parts, rho, state, updates, params, axis_name):
    radius, probe, sampling, correction = parts
    is_constant = isinstance(rho, numbers.Real)
    rho_t: Any = radius.value(state.radius, state.step)
    if is_constant and rho_t == 0:
        return _Decision(rho_t, False, False, state.sampling)
    rho_t = rho_t if is_constant else jnp.maximum(rho_t, 0)

    norm = _float32(sampling.norm(_tree.widen(updates), params))
    wanted, policy_state = sampling.decide(state.sampling, state.step, norm)
    is_unread = wanted is True and not (
        probe.reads_grads or correction.reads_grads or parts.records
    )
    _check_replicated((wanted, () if is_unread else updates))
    if not (wanted is False or is_constant or is_unread or radius.is_positive):
        wanted = (jnp.asarray(rho_t) > 0) & wanted
    sampled = wanted if isinstance(wanted, bool) else _uniform(wanted, axis_name)
    return _Decision(rho_t, sampled, is_unread, policy_state)


def _branch(sampled, fresh, stale, step, params):
    """Runs one of the two branches."""
    is_traced = isinstance(step, Tracer)
    fresh_branch = fast_convolutions(fresh) if is_traced else fresh
    if isinstance(sampled, Tracer):
        return jax.lax.cond(sampled, fresh_branch, stale, params)
    # Outside jit the decision is known, and a cond would be compiled anew on every step.
    if not (sampled or is_traced or step):
        _trace(fresh, params)  # Errors in the user's functions appear on the first step, as in jit.
    return fresh_branch(params) if sampled else stale(params)


def _fresh(parts, state, updates, extra_args, decision, measure, params):
    """A sampled step. Norms are computed only if a part reads them."""
    radius, probe, sampling, correction = parts
    is_unread = decision.is_unread
    grads = _tree.widen(updates)
    read = None if is_unread else grads
    perturbed_grads, probe_state = probe.update(read, state.probe, params, **extra_args)
    perturbed_grads = _tree.widen(perturbed_grads)
    computed, coefficients = correction.fresh(read, perturbed_grads)
    is_kept = isinstance(computed, Kept)

    minus_psf = () if is_unread and not measure else _tree.minus_psf(grads, perturbed_grads)
    is_accepted = jnp.array(True)
    if is_kept or parts.records or _has_changed(probe_state, state.probe):
        is_accepted = jnp.isfinite(_tree.norm(perturbed_grads if is_unread else minus_psf))
        if not is_unread:
            is_accepted &= jnp.isfinite(_tree.norm(grads))
        probe_state = jax.tree.map(
            lambda new, old: old if new is old else jnp.where(is_accepted, new, old),
            probe_state,
            state.probe,
        )
    if is_kept:
        kept = Kept(_tree.cast_within(computed.tree, state.correction.tree), computed.norm)
        tree, norm = _tree.where(is_accepted, kept, state.correction)
        a, b = _scalars(coefficients, updates)
        coefficients = jnp.where(is_accepted, a, jnp.nan), b  # a refused sample must be seen
    else:
        tree, norm = _tree.cast_like(computed, updates), ()

    def recorded(record, norm):
        if record is None:
            return ()
        correction_norm = jnp.where(is_accepted, _float32(norm(minus_psf, params)), jnp.nan)
        return _float32(norm(grads, params)), correction_norm

    measured = state.metrics[-3:]
    if measure:
        norms = _tree.norm(grads), _tree.norm(perturbed_grads)
        cosine = _tree.safe_divide(_tree.dot(grads, perturbed_grads), norms[0] * norms[1])
        measured = map(_float32, (norms[1], _tree.norm(minus_psf), cosine))
    return _Result(
        tree=tree,
        norm=norm,
        coefficients=coefficients,
        probe=probe_state,
        is_accepted=is_accepted,
        recorded=recorded(sampling.record, sampling.norm),
        recorded_whole=recorded(radius.record, lambda tree, _: _tree.norm(tree)),
        measured=tuple(measured),
    )


def _stale(parts, state, updates, age, rho_t, params):
    """A step that is not sampled."""
    del params
    radius, _, sampling, correction = parts
    is_constant = isinstance(rho_t, numbers.Real)
    # Where ρ is 0 nothing is reused, and where it is NaN that must be seen.
    visible = 1.0 if is_constant else jnp.where(jnp.isnan(rho_t), jnp.nan, 1.0)
    if isinstance(state.correction, Kept):
        tree, norm = state.correction
        a, b = correction.stale(state.correction, _tree.widen(updates), age)
        if not is_constant:
            is_positive = jnp.greater(rho_t, 0)
            a, b = jnp.where(is_positive, a, visible), jnp.where(is_positive, b, 0)
        coefficients = _scalars((a, b), updates)
    else:
        tree = updates if is_constant else _tree.scale(visible, updates)
        norm, coefficients = (), None
    nothing = jnp.zeros([], jnp.float32), jnp.zeros([], jnp.float32)
    return _Result(
        tree=tree,
        norm=norm,
        coefficients=coefficients,
        probe=state.probe,
        is_accepted=jnp.array(False),
        recorded=() if sampling.record is None else nothing,
        recorded_whole=() if radius.record is None else nothing,
        measured=tuple(state.metrics[-3:]),
    )


def _scalars(values, tree):
    """As arrays of the dtype of norms of the tree, the same in both branches."""
    dtype = _tree.scalar_dtype(tree)
    return tuple(jnp.asarray(x).astype(dtype) for x in values)


def _returned(state, updates, result):
    """a g + b d, outside the ``lax.cond``, where XLA fuses it with the base optimizer."""
    if not isinstance(state.correction, Kept):
        return result.tree
    a, b = result.coefficients
    grads, kept = _tree.widen(updates), _tree.widen(result.tree)
    mixed = _tree.add(_tree.scale(a, grads), _tree.scale(b, kept))
    return _tree.cast_like(mixed, updates)


def _next_state(parts, state, updates, decision, result, age, measure):
    radius_state, policy_state = state.radius, decision.policy_state
    rho_t, sampled = jnp.asarray(decision.rho, jnp.float32), jnp.asarray(decision.sampled)
    if parts.sampling.record is not None:
        policy_state = parts.sampling.record(
            policy_state, state.step, sampled, *result.recorded, rho_t
        )
    if parts.radius.record is not None:
        radius_state = parts.radius.record(
            radius_state, state.step, sampled, *result.recorded_whole, rho_t
        )
    num_sampled = state.metrics.num_sampled
    is_kept = isinstance(state.correction, Kept)
    return SharpnessAwareState(
        step=jnp.asarray(optax.safe_increment(state.step)),
        age=jnp.where(result.is_accepted, 0, age),
        radius=radius_state,
        probe=result.probe,
        sampling=policy_state,
        correction=Kept(result.tree, result.norm) if is_kept else state.correction,
        metrics=Metrics(
            sampled,
            jnp.where(sampled, optax.safe_increment(num_sampled), num_sampled),
            rho_t,
            _float32(_tree.norm(updates)) if measure else state.metrics.grad_norm,
            *result.measured,
        ),
    )


def _unsampled_state(state, updates, decision, age, measure):
    """The state after a step of a transformation that never samples."""
    metrics = state.metrics._replace(rho=jnp.asarray(decision.rho, jnp.float32))
    if measure:
        metrics = metrics._replace(grad_norm=_float32(_tree.norm(updates)))
    return state._replace(
        step=jnp.asarray(optax.safe_increment(state.step)),
        age=age,
        sampling=decision.policy_state,
        metrics=metrics,
    )


def _has_changed(new, old):
    """Whether a probe has computed a new leaf of its state. A key that it passes on is the same."""
    return any(x is not y for x, y in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True))


def _array_of(x):
    """Zeros for a ``jax.ShapeDtypeStruct``: as in optax, ``init`` accepts shapes alone."""
    return jnp.zeros_like(x) if isinstance(x, jax.ShapeDtypeStruct) else x


def _trace(function, *args):
    """Raises the errors of a function that is not called yet, if it can be traced."""
    # A function that works with concrete values cannot be traced, and need not be.
    forbidden = jax.errors.JAXTypeError, jax.errors.NonConcreteBooleanIndexError
    with contextlib.suppress(*forbidden):
        jax.eval_shape(function, *args)


def _float32(x):
    return x.astype(jnp.float32)


def _check_replicated(tree):
    """Raises if ``shard_map`` sees that what the decision depends on differs between devices."""
    varying = frozenset().union(*map(_devices.varying_axes, jax.tree.leaves(tree)))
    if varying:
        raise ValueError(
            "The gradients or the state of the sampling policy differ between devices, over the"
            f" mapped axis {', '.join(map(repr, sorted(varying)))}. The devices would decide"
            " differently and wait for each other forever. Average the gradients over the axis"
            " before the update and in grad_fn (arsam_jax.parallel.value_and_grad does both), and"
            " keep the optimizer state replicated: the same seed on every device, in_specs and"
            " out_specs P(). Parameters that are sharded inside shard_map are not supported; shard"
            " them with jit and NamedSharding."
        )


def _uniform(sampled, axis_name):
    """The decision, made equal on all devices: different ones would hang in the first collective.

    ``shard_map`` refuses decisions that it sees to differ. ``pmap``, ``vmap`` and ``shard_map``
    without ``check_vma`` see nothing: there, given ``axis_name``, all sample if one of them does.
    """
    for axis in _devices.unseen_axes(axis_name):
        sampled = jax.lax.pmax(sampled, axis)
    return sampled


def _resolve_grad_fn(grads, params, grad_fn, value_fn):
    """Checks the arguments of a step and returns a ``grad_fn`` that checks its own results."""
    if params is None:
        raise ValueError(
            "A sharpness-aware update needs params: tx.update(grads, state, params, ...)."
        )
    if _has_masked_nodes(grads) or _has_masked_nodes(params):
        raise ValueError(
            "A sharpness-aware transformation got masked parameters, on which grad_fn cannot be"
            " evaluated, because optax.masked or optax.partition is around it. To exclude"
            " parameters from the perturbation, put the mask inside the ascent (see"
            " arsam_jax.ascent). To freeze parameters, call init and update with the others alone"
            " and let grad_fn close over the frozen ones. A mask in front of the transformation"
            " does not freeze them."
        )
    _check.check_arrays("params", params)
    _check.check_same_shapes("grads", grads, "params", params)
    if grad_fn is None and value_fn is None:
        raise ValueError(
            "A sharpness-aware update needs grad_fn (or value_fn), which evaluates the same"
            f" mini-batch at other parameters:\n{_EXAMPLE_CALL}\nIf you passed it, a wrapper"
            " around the transformation does not forward extra arguments. Flax's own TrainState"
            " does not: derive yours from arsam_jax.flax.TrainState."
        )
    for name, function in (("grad_fn", grad_fn), ("value_fn", value_fn)):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be a function of params, got {function!r}.")
    evaluate = _tree.gradient(_loss_alone(value_fn)) if grad_fn is None else grad_fn
    if isinstance(grad_fn, _check.GradientObserver):
        grad_fn.see(grads)
    return _check.checked_grad_fn("grad_fn", evaluate)


def _loss_alone(value_fn):
    def checked(params):
        try:
            value = value_fn(params)
        except TypeError as error:
            error.add_note("value_fn takes params alone: lambda params: loss_fn(params, batch).")
            raise
        if jax.tree.structure(value) != jax.tree.structure(0) or jnp.shape(value) != ():
            raise ValueError(
                "value_fn(params) must return the loss alone, a scalar (no auxiliary data), got"
                f" {jax.tree.structure(value)} of shapes"
                f" {list(map(jnp.shape, jax.tree.leaves(value)))}."
            )
        return value

    return checked


def _has_masked_nodes(tree):
    def is_masked(x):
        return isinstance(x, optax.MaskedNode)

    return any(is_masked(x) for x in jax.tree.leaves(tree, is_leaf=is_masked))
