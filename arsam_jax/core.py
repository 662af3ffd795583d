"""The core: joins radius, probe, sampling and correction with one ``lax.cond``."""

import contextlib
import functools
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from arsam_jax import _check, _tree
from arsam_jax import correction as correction_lib
from arsam_jax import probe as probe_lib
from arsam_jax import radius as radius_lib
from arsam_jax import sampling as sampling_lib
from arsam_jax.convolutions import fast_convolutions

_EXAMPLE_CALL = """
    def grad_fn(params):  # the same mini-batch, the same dropout key
        return jax.grad(loss_fn)(params, batch)
    updates, opt_state = tx.update(grad_fn(params), opt_state, params, grad_fn=grad_fn)"""


class Metrics(NamedTuple):
    """What a sharpness-aware step did. All are scalars, float32 where not said.

    The first three cost nothing. The others move only where ``update`` is called with
    ``measure=True`` and are 0 until then: each takes a pass over the gradients, and a method that
    leaves the clean gradient unread (``momentum_sam``, ``m_sam``, ...) then has to pay for it.

    Attributes:
      sampled: bool, whether the last step asked the probe, which is what costs: for most methods a
        second gradient.
      num_sampled: int32, the steps so far that did.
      rho: ρ of the last step, as the probe gets it: ``budgeted_sam`` multiplies its own argument.
      grad_norm: ‖g‖ of the last step.
      perturbed_grad_norm: norm of the perturbed gradient of the last step that was both sampled
        and measured, as are the next two.
      correction_norm: ‖PSF‖ there, PSF = perturbed gradient − gradient.
      cosine: between the gradient and the perturbed gradient there.
    """

    sampled: jax.Array
    num_sampled: jax.Array
    rho: jax.Array
    grad_norm: jax.Array
    perturbed_grad_norm: jax.Array
    correction_norm: jax.Array
    cosine: jax.Array


class SharpnessAwareState(NamedTuple):
    """State of ``sharpness_aware``: arrays only, of fixed shapes and dtypes.

    Attributes:
      step: int32 scalar, the steps taken.
      age: int32 scalar, the steps since the last sample, of a method that keeps something since
        the last one with finite gradients.
      radius: state of the radius policy, () of a number or a schedule.
      probe: state of the probe.
      sampling: state of the sampling policy.
      correction: state of the correction.
      metrics: see ``Metrics``.
    """

    step: jax.Array
    age: jax.Array
    radius: Any
    probe: Any
    sampling: Any
    correction: Any
    metrics: Metrics


def sharpness_aware(
    rho: radius_lib.ScalarOrSchedule,
    *,
    probe: probe_lib.Probe = probe_lib.perturb(),  # noqa: B008
    sampling: sampling_lib.SamplingPolicy = sampling_lib.always(),  # noqa: B008
    correction: correction_lib.Correction = correction_lib.replace(),  # noqa: B008
) -> optax.GradientTransformationExtraArgs:
    """Turns gradients into sharpness-aware gradients: radius × probe × sampling × correction.

    The first link of a chain, never a wrapper around the base optimizer::

        tx = optax.chain(sharpness_aware(0.1), optax.sgd(0.1, momentum=0.9))
        updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)

    ``grad_fn(params) -> grads`` evaluates the same mini-batch with the same dropout key as
    ``grads``; gradients are already averaged over devices, and conjugated where parameters are
    complex, as optax takes them. ``value_fn(params) -> loss``, of ``params`` alone, is accepted
    instead. Methods that look at single examples take ``example_loss_fn(params, batch) -> losses``
    of shape (batch,) and ``batch`` (a Fisher mask ``fisher_batch``, too), and inside ``pmap`` or
    ``shard_map`` ``axis_name``, over which they average the gradients they take themselves. Those
    that remember examples take ``example_index``, int (batch,), their positions in the data set;
    SAMPa takes ``previous_grad_fn``, that of the mini-batch before; m-SAM ``microbatch_grads``,
    where the step has them. Extra arguments that no part needs are ignored, so a step can pass them
    all.

    A step costs one gradient, and on sampled steps what the probe costs in addition (one more for
    most). With the number 0 for ``rho``, or a policy that never samples, ``update`` returns the
    gradients it was given, so the base optimizer runs unchanged, bit for bit. Where a schedule of ρ
    is 0 (or below), no second gradient is evaluated and none is reused. The returned gradient then
    has the values of the clean one, but the compiler may round it differently in the last bit,
    because the ``lax.cond`` is part of the program. Probes that do not read the gradient (see
    ``Probe``) are evaluated on those steps, too. Where ρ is NaN, NaN is returned.

    Non-finite gradients are returned, so that ``optax.apply_if_finite`` further down the chain sees
    them. They change no part of the state except counters and the record of evaluated gradients.
    ``measure=True`` fills all of ``Metrics``.

    Under ``vmap`` the decision has to be the same for all elements, or the ``lax.cond`` becomes a
    ``select`` and every step costs two gradients. Put the whole run inside the ``vmap``: decisions
    that depend on the step and the seed alone then stay unbatched. They are those of all methods
    except ``arsam`` and ``ae_sam``, whose decisions follow the gradients. For these two, pass the
    ``axis_name`` of the ``vmap`` to ``update``: a step is then sampled for all elements if one of
    them wants it. Do not pass the axis of an ensemble to methods that take ``example_loss_fn``,
    which average their gradients over ``axis_name``. If only the train step is mapped, the state is
    batched; pass ``axis_name`` in this case as well.

    Args:
      rho: ρ >= 0, the radius of the perturbation, a schedule ``step -> ρ``, or a policy of
        ``arsam_jax.radius``.
      probe: how the second gradient is taken.
      sampling: on which steps.
      correction: what is emitted and kept.

    Returns:
      A transformation whose ``update`` needs ``params`` and ``grad_fn`` (or ``value_fn``).

    Raises:
      TypeError, ValueError: at construction for a bad argument, at trace time for a missing or
        wrong extra argument; each names it.
    """
    radius = rho if isinstance(rho, radius_lib.Radius) else _unrecorded(rho)
    for name, part, kind in (
        ("probe", probe, probe_lib.Probe),
        ("sampling", sampling, sampling_lib.SamplingPolicy),
        ("correction", correction, correction_lib.Correction),
    ):
        if not isinstance(part, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {part!r}.")
    if radius.record is not None and not probe.whole_batch:
        raise ValueError(
            "rho must be a number or a schedule here: a radius policy follows the difference of the"
            " perturbed gradient from the gradient, and this probe takes the former on other"
            f" examples. Got {rho!r}."
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
        metrics = Metrics(*(jnp.zeros([], _METRIC_DTYPES[name]) for name in Metrics._fields))
        return SharpnessAwareState(
            step=jnp.zeros([], jnp.int32),
            age=jnp.full([], correction_lib.NEVER, jnp.int32),
            radius=radius.init(params),
            probe=probe.init(params),
            sampling=sampling.init(),
            correction=correction.init(params),
            metrics=metrics,
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
        rho_t, sampled, is_unread, policy_state = _decide(
            parts, rho, state, updates, params, extra_args.get("axis_name")
        )
        age = jnp.where(state.age < correction_lib.NEVER, state.age + 1, state.age)
        if sampled is False:  # This step and all others: nothing is computed, so every bit is kept.
            metrics = state.metrics._replace(rho=jnp.asarray(rho_t, jnp.float32))
            if measure:
                metrics = metrics._replace(grad_norm=_float32(_tree.norm(updates)))
            step = jnp.asarray(optax.safe_increment(state.step))
            return given, state._replace(step=step, age=age, sampling=policy_state, metrics=metrics)
        extra_args |= {"rho": rho_t, "step": state.step, "grad_fn": grad_fn}
        fresh = functools.partial(
            _fresh, parts, state, updates, extra_args, is_unread=is_unread, measure=measure
        )
        stale = functools.partial(_stale, parts, state, updates, age, rho_t)
        branch = fast_convolutions(fresh) if isinstance(state.step, Tracer) else fresh
        if isinstance(sampled, Tracer):
            result = jax.lax.cond(sampled, branch, stale, params)
        else:  # known, as it is outside jit, where a cond would be compiled anew at every step
            if not (sampled or isinstance(state.step, Tracer) or state.step):
                _trace(fresh, params)  # as jit does: what is wrong is an error in the first step
            result = branch(params) if sampled else stale(params)

        rho_32, radius_state = jnp.asarray(rho_t, jnp.float32), state.radius
        sampled = jnp.asarray(sampled)
        if sampling.record is not None:
            policy_state = sampling.record(
                policy_state, state.step, sampled, *result.recorded, rho_32
            )
        if radius.record is not None:
            radius_state = radius.record(
                radius_state, state.step, sampled, *result.recorded_whole, rho_32
            )
        num_sampled = state.metrics.num_sampled
        state = SharpnessAwareState(
            step=jnp.asarray(optax.safe_increment(state.step)),
            age=jnp.where(result.is_accepted, 0, age),
            radius=radius_state,
            probe=result.probe,
            sampling=policy_state,
            correction=result.correction,
            metrics=Metrics(
                sampled,
                jnp.where(sampled, optax.safe_increment(num_sampled), num_sampled),
                rho_32,
                _float32(_tree.norm(updates)) if measure else state.metrics.grad_norm,
                *result.measured,
            ),
        )
        return result.updates, state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def get_state(opt_state: Any) -> SharpnessAwareState:
    """The state of the one sharpness-aware link anywhere in an optimizer state.

    Raises:
      ValueError: if there is none, or more than one.
    """

    def is_state(x):
        return isinstance(x, SharpnessAwareState)

    found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(x)]
    if len(found) != 1:
        raise ValueError(
            f"opt_state must hold exactly one sharpness-aware state, found {len(found)}."
            + " (A checkpoint restored without a target has none.)" * (not found)
        )
    return found[0]


def get_metrics(opt_state: Any) -> Metrics:
    """The metrics of the one sharpness-aware link anywhere in an optimizer state.

    Raises:
      ValueError: if there is none, or more than one.
    """
    return get_state(opt_state).metrics


class Witness(NamedTuple):
    """A ``grad_fn`` that is told which gradients reach the link, for ``check_wiring``."""

    see: Callable[[Any], None]

    def __call__(self, params: Any) -> Any:
        return params


def _unrecorded(rho: optax.ScalarOrSchedule) -> radius_lib.Radius:
    _check.check_scalar_or_schedule("rho", rho, low=0)
    return radius_lib.Radius(lambda params: (), lambda _, step: rho(step) if callable(rho) else rho)


class _Parts(NamedTuple):
    radius: radius_lib.Radius
    probe: probe_lib.Probe
    sampling: sampling_lib.SamplingPolicy
    correction: correction_lib.Correction

    @property
    def records(self) -> bool:
        return self.sampling.record is not None or self.radius.record is not None


def _decide(parts, rho, state, updates, params, axis_name):
    """ρ of this step, whether it is sampled, whether the gradient is unread, the policy's state.

    Sampled is a Python bool where nothing in the step can change it.
    """
    radius, probe, sampling, correction = parts
    is_constant = isinstance(rho, numbers.Real)
    rho_t: Any = radius.value(state.radius, state.step)
    if is_constant and rho_t == 0:
        return rho_t, False, False, state.sampling
    rho_t = rho_t if is_constant else jnp.maximum(rho_t, 0)

    norm = _float32(sampling.norm(_tree.widen(updates), params))
    wanted, policy_state = sampling.decide(state.sampling, state.step, norm)
    reads_grads = probe.reads_grads or correction.reads_grads or parts.records
    is_unread = wanted is True and not reads_grads
    _check_replicated((wanted, () if is_unread else updates))
    if wanted is False:
        sampled = False
    elif is_constant or is_unread or radius.is_positive:
        sampled = True if wanted is True else _uniform(wanted, axis_name)
    else:
        sampled = _uniform((jnp.asarray(rho_t) > 0) & wanted, axis_name)
    return rho_t, sampled, is_unread, policy_state


class _StepResult(NamedTuple):
    """What a step with a perturbed gradient, or one without, hands on."""

    updates: Any
    probe: Any
    correction: Any
    is_accepted: jax.Array  # whether a perturbed gradient was taken, and a finite one if kept
    recorded: tuple  # what the sampling policy records: ‖g‖, ‖PSF‖
    recorded_whole: tuple  # the same for the radius, of all leaves
    measured: tuple  # the last three of the metrics


def _fresh(parts, state, updates, extra_args, params, *, is_unread, measure):
    """A step that asks the probe. Norms are taken for what reads them alone."""
    radius, probe, sampling, correction = parts
    grads = _tree.widen(updates)
    read = None if is_unread else grads
    perturbed_grads, probe_state = probe.update(read, state.probe, params, **extra_args)
    perturbed_grads = _tree.widen(perturbed_grads)
    emitted, correction_state = correction.fresh(state.correction, read, perturbed_grads)

    minus_psf = () if is_unread and not measure else _tree.minus_psf(grads, perturbed_grads)
    is_accepted = jnp.array(True)
    old, new = (state.probe, state.correction), (probe_state, correction_state)
    if parts.records or _has_moved(new, old):
        norm = _tree.norm(perturbed_grads if is_unread else minus_psf)
        # What is kept may have a narrower dtype and overflow where the gradient does not.
        narrow = _tree.narrow_leaves(correction_state, norm)
        is_accepted = jnp.isfinite(norm) & _tree.is_finite(narrow)
        if not is_unread:
            is_accepted &= jnp.isfinite(_tree.norm(grads))
        probe_state, correction_state = jax.tree.map(
            lambda x, y: y if x is y else jnp.where(is_accepted, x, y), new, old
        )

    def recorded(record, norm):
        if record is None:
            return ()
        correction_norm = jnp.where(is_accepted, _float32(norm(minus_psf, params)), jnp.nan)
        return _float32(norm(grads, params)), correction_norm

    measured = state.metrics[-3:]
    if measure:
        norm, perturbed_norm = _tree.norm(grads), _tree.norm(perturbed_grads)
        cosine = _tree.safe_divide(_tree.dot(grads, perturbed_grads), norm * perturbed_norm)
        measured = map(_float32, (perturbed_norm, _tree.norm(minus_psf), cosine))
    emitted = _tree.cast_like(emitted, updates)
    return _StepResult(
        *(emitted, probe_state, correction_state, is_accepted),
        recorded(sampling.record, sampling.norm),
        recorded(radius.record, lambda tree, _: _tree.norm(tree)),
        tuple(measured),
    )


def _stale(parts, state, updates, age, rho_t, params):
    """A step that does not ask the probe."""
    del params
    radius, _, sampling, correction = parts
    grads = _tree.widen(updates)
    emitted = correction.stale(state.correction, grads, age)
    if not isinstance(rho_t, numbers.Real):  # a PSF of another radius is not one of ρ = 0
        nan_or_one = jnp.where(jnp.isnan(rho_t), jnp.nan, 1)
        emitted = _tree.where(jnp.greater(rho_t, 0), emitted, _tree.scale(nan_or_one, grads))
    nothing = jnp.zeros([], jnp.float32), jnp.zeros([], jnp.float32)
    emitted = _tree.cast_like(emitted, updates)
    return _StepResult(
        *(emitted, state.probe, state.correction, jnp.array(False)),
        () if sampling.record is None else nothing,
        () if radius.record is None else nothing,
        tuple(state.metrics[-3:]),
    )


def _has_moved(new, old):
    """Whether a part has computed a new leaf of its state. A key that it passes on is the same."""
    return any(x is not y for x, y in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True))


_METRIC_DTYPES = dict.fromkeys(Metrics._fields, jnp.float32) | {
    "sampled": jnp.bool_,
    "num_sampled": jnp.int32,
}


def _array_of(x):
    """Zeros for a ``jax.ShapeDtypeStruct``, of which optax's transformations make a state, too."""
    return jnp.zeros_like(x) if isinstance(x, jax.ShapeDtypeStruct) else x


def _trace(function, *args):
    """Raises what is wrong with a function that is not called yet, if it can be traced."""
    # It works with values, which jit forbids.
    forbidden = jax.errors.JAXTypeError, jax.errors.NonConcreteBooleanIndexError
    with contextlib.suppress(*forbidden):
        jax.eval_shape(function, *args)


def _float32(x):
    return x.astype(jnp.float32)


def _check_replicated(tree):
    """Raises if ``shard_map`` sees that what the devices decide by is not the same on all."""
    varying = frozenset().union(*map(_tree.varying_axes, jax.tree.leaves(tree)))
    if varying:
        raise ValueError(
            "What a step decides by, gradients or the state of the policy, varies over the mapped"
            f" axis {', '.join(map(repr, sorted(varying)))}: the devices would wait for each other"
            " forever, or drift apart. Average the gradients over the axis before the update and in"
            " grad_fn (arsam_jax.parallel.value_and_grad does both right), and keep the optimizer"
            " state replicated: the same seed on every device, in_specs and out_specs P()."
            " Parameters that are sharded inside shard_map are not supported; shard them with jit"
            " and NamedSharding."
        )


def _uniform(sampled, axis_name):
    """The decision, the same on every device: a different one would hang in the first collective.

    What ``shard_map`` can see to vary has been refused. In ``pmap``, and in ``shard_map`` without
    ``check_vma``, nothing can be seen: there all sample if one wants to, given ``axis_name``.
    """
    for axis in _tree.unseen_axes(axis_name):
        sampled = jax.lax.pmax(sampled, axis)
    return sampled


def _resolve_grad_fn(grads, params, grad_fn, value_fn):
    """Checks what a step was called with and returns a ``grad_fn`` that checks what it returns."""
    if params is None:
        raise ValueError(
            "A sharpness-aware update needs params: tx.update(grads, state, params, ...)."
        )
    if _has_masked_nodes(grads) or _has_masked_nodes(params):
        raise ValueError(
            "A sharpness-aware link got masked parameters, on which grad_fn cannot be evaluated:"
            " optax.masked or optax.partition is around it. To leave some parameters out of the"
            " perturbation, put the mask inside the ascent (see arsam_jax.ascent). To freeze some,"
            " differentiate the others alone: call init and update with those, and let grad_fn"
            " close over the frozen ones. A mask before the link does not freeze them."
        )
    _check.check_arrays("params", params)
    _check.check_same_shapes("grads", grads, "params", params)
    if grad_fn is None and value_fn is None:
        raise ValueError(
            "A sharpness-aware update needs grad_fn (or value_fn), which evaluates the same"
            f" mini-batch at other parameters:\n{_EXAMPLE_CALL}\nIf it was passed, a wrapper"
            " around this link does not forward extra arguments. Flax's own TrainState takes"
            " grad_fn for one of its fields: make yours from arsam_jax.flax.TrainState."
        )
    for name, function in (("grad_fn", grad_fn), ("value_fn", value_fn)):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be a function of params, got {function!r}.")
    evaluate = _tree.gradient(_loss_alone(value_fn)) if grad_fn is None else grad_fn
    if isinstance(grad_fn, Witness):
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
