"""Parts that print the call that made them, such as ``reuse_psf(steps=None, bound=0.1)``."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import optax

Arguments = ParamSpec("Arguments")
Part = TypeVar("Part", bound=Any)


def described(make: Callable[Arguments, Part]) -> Callable[Arguments, Part]:
    """Sets the ``name`` of the part that ``make`` returns: the call, without default arguments."""
    signature = inspect.signature(make)

    @functools.wraps(make)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Part:
        part = make(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        shown = [
            f"{name}={_text(value)}"
            for name, value in given.items()
            if value is not signature.parameters[name].default
        ]
        return part._replace(name=f"{make.__name__}({', '.join(shown)})")

    return wrapped


def describe(part: Any) -> str:
    """The ``repr`` of a part: its name, or the names of its functions if it has none."""
    functions = [f"{field}={_text(value)}" for field, value in zip(part._fields, part, strict=True)]
    return part.name or f"{type(part).__name__}({', '.join(functions[:-1])})"


def _text(value: Any) -> str:
    if isinstance(value, optax.GradientTransformation):  # an ascent: the function that made it
        name = getattr(value.update, "__qualname__", "GradientTransformation")
        return f"{name.partition('.<locals>')[0]}(...)"
    return value.__qualname__ if inspect.isfunction(value) else repr(value)
