"""Argument checks: every error names the argument, its value and what is allowed."""

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from arsam_jax import _tree


class MissingArgumentError(ValueError):
    """An extra argument of ``update`` that a part needs is missing."""

    def __init__(self, argument: str, message: str):
        super().__init__(message)
        self.argument = argument


def check_number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Raises unless ``value`` is a finite real scalar in [low, high], or (above, below).

    A traced value (``optax.inject_hyperparams``) has no value yet and passes.
    """
    if isinstance(value, Tracer):
        return
    lower = f"> {above}" if above is not None else f">= {low}" if low > -math.inf else ""
    upper = f"< {below}" if below is not None else f"<= {high}" if high < math.inf else ""
    allowed = " ".join(["a finite number", " and ".join(filter(None, (lower, upper)))]).strip()
    is_scalar_array = isinstance(value, jax.Array | np.ndarray) and value.ndim == 0
    if isinstance(value, bool) or not (isinstance(value, numbers.Real) or is_scalar_array):
        raise TypeError(f"{name} must be {allowed}, got {value!r}.")
    x = float(value)
    inside = low <= x <= high and (above is None or x > above) and (below is None or x < below)
    if not (math.isfinite(x) and inside):
        raise ValueError(f"{name} must be {allowed}, got {value!r}.")


def check_integer(name: str, value: Any, *, low: int, high: int | None = None) -> None:
    """Raises unless ``value`` is a whole number in [low, high].

    Arrays and traced values pass whatever their dtype: ``optax.inject_hyperparams`` turns every
    number into a float32 array.
    """
    bounds = f">= {low}" if high is None else f"in [{low}, {high}]"
    if isinstance(value, Tracer):
        return
    is_key = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    if isinstance(value, jax.Array | np.ndarray) and value.ndim == 0 and not is_key:
        value = value.item()
        is_whole = float(value).is_integer()
    else:
        is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole:
        raise TypeError(f"{name} must be an integer {bounds}, got {value!r}.")
    if int(value) < low or (high is not None and int(value) > high):
        raise ValueError(f"{name} must be an integer {bounds}, got {value!r}.")


def check_scalar_or_schedule(name: str, value: Any, **bounds: Any) -> None:
    """As ``check_number``, and a callable ``step -> scalar`` passes if it returns a scalar."""
    if not callable(value):
        check_number(name, value, **bounds)
        return
    result = jax.eval_shape(value, jax.ShapeDtypeStruct((), np.int32))
    if not (hasattr(result, "shape") and result.shape == ()):
        raise ValueError(f"{name} must be a scalar or a schedule that returns one, got {result!r}.")


def check_seed(seed: Any) -> None:
    """Raises unless ``seed`` is a whole number in [0, 2**32)."""
    check_integer("seed", seed, low=0, high=2**32 - 1)


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raises unless ``value`` is one of the allowed names."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")


def check_floating_dtype(name: str, dtype: Any, *, or_none: bool = False) -> None:
    """Raises unless ``dtype`` is a floating point dtype, or None where that is allowed.

    Narrower ones than float16 are refused: what is kept in them would have to be scaled, or it
    overflows and vanishes.
    """
    check_static(name, dtype, "a dtype")
    try:
        is_allowed = or_none if dtype is None else _is_wide_floating(jnp.dtype(dtype))
    except TypeError:  # no dtype at all
        is_allowed = False
    if not is_allowed:
        allowed = "a floating point dtype of 16 bits or more" + " or None" * or_none
        raise ValueError(f"{name} must be {allowed}, got {dtype!r}.")


def _is_wide_floating(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating)) and jnp.finfo(dtype).bits >= 16


def check_static(
    name: str,
    value: Any,
    allowed: str = "a Python number, since it decides shapes",
    *,
    static_args: tuple[str, ...] | None = None,
) -> None:
    """Raises if ``value`` is an array, where it decides shapes or structure.

    ``static_args`` are what to leave out of ``optax.inject_hyperparams``, which makes arrays of
    numbers and calls functions with a step; ``name`` alone by default.
    """
    if isinstance(value, jax.Array):
        names = " and ".join(map(repr, static_args or (name,)))
        raise TypeError(
            f"{name} must be {allowed}, got {value!r}. With optax.inject_hyperparams, name {names}"
            " in its static_args."
        )


def checked_grad_fn(name: str, grad_fn: Any) -> Callable[[Any], Any]:
    """``grad_fn``, which raises unless what it returns is shaped like its ``params``."""
    if not callable(grad_fn):
        raise TypeError(f"{name} must be a function of params, got {grad_fn!r}.")

    def checked(params):
        try:
            found = grad_fn(params)
        except (AttributeError, TypeError) as error:
            error.add_note(
                f"{name} is called with params, a tree of arrays, and not with a model. Build the"
                " model inside it: eqx.combine(params, static) for Equinox, nnx.merge(graphdef,"
                " params, rest, copy=True) for Flax NNX. arsam_jax.equinox.eqx_value_and_grad and"
                f" arsam_jax.flax.nnx_value_and_grad return such a {name}."
            )
            raise
        same_structure = jax.tree.structure(params) == jax.tree.structure(found)
        shapes = [list(map(jnp.shape, jax.tree.leaves(tree))) for tree in (params, found)]
        if not same_structure or shapes[0] != shapes[1]:
            raise ValueError(
                f"{name}(params) must return gradients only, shaped like params (not a loss, nor"
                f" auxiliary data). Expected {jax.tree.structure(params)} of shapes {shapes[0]},"
                f" got {jax.tree.structure(found)} of shapes {shapes[1]}."
            )
        return found

    return checked


def checked_ascent(ascent: Any) -> optax.GradientTransformationExtraArgs:
    """The ascent, which takes extra arguments and starts from parameters in at least float32."""
    if not isinstance(ascent, optax.GradientTransformation):
        raise TypeError(
            "ascent must be an optax.GradientTransformation, such as ascent.normalize() (called),"
            f" got {ascent!r}."
        )
    update = optax.with_extra_args_support(ascent).update
    return optax.GradientTransformationExtraArgs(
        lambda params: ascent.init(_tree.widen(params)), update
    )


def checked_mask(mask: Any, params: Any) -> Any:
    """The tree of bools that a mask is or makes from the parameters.

    Raises:
      ValueError: unless it has the structure of the parameters and selects at least one of them.
    """
    found = mask(params) if callable(mask) else mask
    same = jax.tree.structure(found) == jax.tree.structure(params)
    if not (same and all(isinstance(x, bool) for x in jax.tree.leaves(found))):
        raise ValueError(
            "mask must be a tree of bools like the parameters, or a function that returns one,"
            f" got {found!r}."
        )
    if jax.tree.leaves(params) and not any(jax.tree.leaves(found)):
        raise ValueError(f"mask must select at least one parameter, got {found!r}.")
    return found


class GradientObserver(NamedTuple):
    """A ``grad_fn`` that shows ``check_wiring`` the gradients that reach the transformation."""

    see: Callable[[Any], None]

    def __call__(self, params: Any) -> Any:
        return params


def check_arrays(name: str, tree: Any) -> None:
    """Raises unless every leaf is an array, or what describes one, or a number."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not (hasattr(leaf, "dtype") or isinstance(leaf, numbers.Number)):
            raise TypeError(
                f"{name} must be a tree of arrays, got {leaf!r} at"
                f" {jax.tree_util.keystr(path) or 'the root'}. Of an Equinox model pass"
                " eqx.filter(model, eqx.is_inexact_array)."
            )


def check_same_shapes(name: str, tree: Any, other_name: str, other: Any) -> None:
    """Raises unless both trees have the same structure and leaves of the same shapes."""
    differing = differing_shapes(tree, other)
    if differing is not None:
        raise ValueError(
            f"{name} must be shaped like {other_name}, got {differing}. (Leaves of which no"
            " gradient is taken belong in neither.)"
        )


def differing_shapes(tree: Any, other: Any) -> str | None:
    """Where the first tree has other leaves than the second, or None if both are alike."""
    shapes, other_shapes = (
        {
            jax.tree_util.keystr(path) or "the root": jnp.shape(x)
            for path, x in jax.tree_util.tree_leaves_with_path(t)
        }
        for t in (tree, other)
    )
    differing = [
        f"{shapes.get(path, 'nothing')} in place of {other_shapes.get(path, 'nothing')} at {path}"
        for path in other_shapes | shapes
        if shapes.get(path) != other_shapes.get(path)
    ]
    structures = jax.tree.structure(tree), jax.tree.structure(other)
    if not differing and structures[0] != structures[1]:
        differing = [f"{structures[0]} in place of {structures[1]}"]
    return list_some(differing) if differing else None


def list_some(names: list[str], most: int = 5) -> str:
    """The first few of the names, and how many more there are."""
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)
