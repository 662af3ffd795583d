"""Convolutions that stay fast inside ``lax.cond``, ``scan`` and ``while_loop`` on XLA:CPU."""

# pyright: reportPossiblyUnboundVariable=false
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

try:  # These names have moved between versions of JAX. Without them nothing is rewritten.
    from jax.core import ShapedArray, eval_jaxpr
    from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
    from jax.extend.core.primitives import conv_general_dilated_p, transpose_p
except ImportError as error:
    MISSING: ImportError | None = error
else:
    MISSING = None


def fast_convolutions(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns ``fn`` with convolutions that are fast on CPU wherever ``fn`` is called.

    XLA:CPU brings convolutions into the form that its fast kernels need (N-spatial-C, spatial-I-O,
    N-spatial-C) only in the entry computation (https://github.com/jax-ml/jax/issues/12868). The
    gradient of a convolution does not have that form, so it runs 20 to 40 times slower inside
    ``lax.cond``, ``lax.scan`` or ``lax.while_loop``. This function traces ``fn`` once per call and
    replaces each of its convolutions by transpose, convolution in that form, transpose. XLA does
    the same at the top level, so the results have the same bits as there, except for gradients of
    grouped convolutions, which XLA regroups first.

    Sharpness-aware transformations call this function themselves. Call it yourself if you scan over
    train steps of a convolutional network on a CPU.

    Convolutions inside ``jit``, control flow, ``jax.checkpoint``, ``shard_map`` and unknown
    primitives are replaced, too. Custom derivative rules are left alone: for a call with such a
    rule only the primal computation is rewritten. Nothing is traced or rewritten if
    ``jax.default_backend()`` is not "cpu". If the rewriting fails, ``fn`` runs as it is, with a
    ``RuntimeWarning``.

    Args:
      fn: a function of one pytree, for instance ``params -> gradients``. It may close over tracers.
        It must not depend on the values in the pytree by Python control flow.

    Returns:
      A function of the same pytree with the same results, shapes, dtypes, effects and derivatives.

    Example::

        def train_step(carry, batch):
            params, opt_state = carry
            grad_fn = arsam_jax.fast_convolutions(lambda params: jax.grad(loss_fn)(params, batch))
            updates, opt_state = tx.update(grad_fn(params), opt_state, params, grad_fn=grad_fn)
            return (optax.apply_updates(params, updates), opt_state), None

        jax.lax.scan(train_step, (params, opt_state), batches)
    """

    @functools.wraps(fn)
    def fast_fn(params):
        if jax.default_backend() != "cpu":
            return fn(params)
        # jit's cache knows a function by identity, and fn may close over other tracers by now.
        jaxpr, shapes = jax.make_jaxpr(functools.partial(fn), return_shape=True)(params)
        if MISSING is not None:
            if "conv_general_dilated" in str(jaxpr):
                _warn_once(
                    "The gradients of convolutions inside lax.cond will be 20 to 40 times slower"
                    " on CPU, because this version of JAX lacks what arsam_jax needs"
                    f" ({MISSING}). Other platforms are not affected. Please report it, or use an"
                    " older JAX."
                )
            return fn(params)
        try:
            canonical = _with_canonical_convolutions(jaxpr)
        except Exception as error:
            _warn_once(f"Convolutions inside lax.cond will be slow on CPU: {error!r}")
            canonical = jaxpr
        outputs = _evaluate(canonical, *jax.tree.leaves(params))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return fast_fn


def _evaluate(jaxpr: "ClosedJaxpr", *args):
    return eval_jaxpr(_opened(jaxpr), jaxpr.consts, *args)


def _opened(jaxpr: Any) -> Any:
    """What a closed jaxpr holds; from jax 0.11 on that is the jaxpr itself."""
    return getattr(jaxpr, "jaxpr", jaxpr)


@functools.cache
def _warn_once(message: str):
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def _with_canonical_convolutions(jaxpr: "ClosedJaxpr") -> "ClosedJaxpr":
    """Rewrites every convolution, at any depth; what has none to rewrite stays the same object."""

    @functools.cache  # a jaxpr used twice is also lowered and compiled once
    def rewrite(value: Any) -> Any:
        if (opened := _opened(value)) is not value:
            inner = rewrite(opened)
            return value if inner is opened else value.replace(jaxpr=inner)
        eqns = [new for old in value.eqns for new in rewrite_equation(old)]
        return value.replace(eqns=eqns) if eqns != value.eqns else value

    def rewrite_param(value):
        if isinstance(value, Jaxpr | ClosedJaxpr):
            return rewrite(value)
        if isinstance(value, tuple):  # lax.cond's branches; lax.custom_linear_solve's NamedTuple
            new = [rewrite_param(v) for v in value]
            if any(n is not v for n, v in zip(new, value, strict=True)):
                return type(value)(*new) if hasattr(value, "_fields") else type(value)(new)
        return value

    def rewrite_equation(eqn: "JaxprEqn") -> "list[JaxprEqn]":
        if eqn.primitive is conv_general_dilated_p:
            return _canonical_convolution(eqn)
        params = {name: rewrite_param(value) for name, value in eqn.params.items()}
        same = all(params[name] is value for name, value in eqn.params.items())
        return [eqn if same else eqn.replace(params=params)]

    return rewrite(jaxpr)


def _canonical_convolution(eqn: "JaxprEqn") -> "list[JaxprEqn]":
    """The equations of transpose, convolution in canonical form, transpose."""
    lhs, rhs, out = (cast(ShapedArray, v.aval) for v in (*eqn.invars, *eqn.outvars))
    spatial = "".join(map(str, range(lhs.ndim - 2)))
    form = f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"
    old = eqn.params["dimension_numbers"]
    new = lax.conv_dimension_numbers(lhs.shape, rhs.shape, form)
    if old == new:
        return [eqn]
    orders = [_order(*specs) for specs in zip(old, new, strict=True)]
    params: dict[str, Any] = eqn.params | {"dimension_numbers": new}
    if params.get("out_sharding") is not None:
        params["out_sharding"] = _permuted(params["out_sharding"], orders[2])
    avals = map(_permuted_aval, (lhs, rhs, out), orders)
    with eqn.ctx.manager:  # tracing nothing is how all versions of jax make new variables
        x, w, y = _opened(jax.make_jaxpr(lambda *_: None)(*avals)).invars

    def transpose(variable, order, result):
        return eqn.replace(
            primitive=transpose_p,
            params={"permutation": order},
            invars=[variable],
            outvars=[result],
        )

    return [
        transpose(eqn.invars[0], orders[0], x),
        transpose(eqn.invars[1], orders[1], w),
        eqn.replace(params=params, invars=[x, w], outvars=[y]),
        transpose(y, _order(new.out_spec, old.out_spec), eqn.outvars[0]),
    ]


def _order(old: Sequence[int], new: Sequence[int]) -> tuple[int, ...]:
    """The permutation that brings each dimension from its place in `old` to that in `new`."""
    return tuple(dimension for _, dimension in sorted(zip(new, old, strict=True)))


def _permuted_aval(aval: "ShapedArray", order: tuple[int, ...]) -> "ShapedArray":
    shape = tuple(aval.shape[i] for i in order)
    return aval.update(shape=shape, sharding=_permuted(aval.sharding, order))


def _permuted(sharding: NamedSharding, order: tuple[int, ...]) -> NamedSharding:
    spec = *sharding.spec, *[None] * len(order)  # a spec may name the first dimensions only
    return NamedSharding(sharding.mesh, PartitionSpec(*(spec[i] for i in order)))
