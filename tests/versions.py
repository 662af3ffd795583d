"""Marks for tests that need more than the lowest versions that pyproject.toml allows."""

import jax
import pytest
from flax import nnx

needs_shard_map = pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="JAX without shard_map")
needs_set_mesh = pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="JAX without set_mesh")
needs_nnx = pytest.mark.skipif(
    not hasattr(nnx, "Pytree"), reason="an older Flax than arsam_jax.flax takes"
)
as_pure = getattr(nnx, "as_pure", None) or getattr(nnx, "pure", None)  # by version


def cases(names, *more_marks):
    """Parameters of a test. Those whose parallelism this version of JAX lacks are skipped."""

    def marks(name):
        regime = name[-1] if isinstance(name, tuple) else name
        if "shard_map" in regime:
            return (needs_shard_map, *more_marks)
        return (
            (needs_set_mesh, *more_marks) if regime.startswith(("jit", "explicit")) else more_marks
        )

    return [
        pytest.param(*(name if isinstance(name, tuple) else (name,)), marks=marks(name))
        for name in names
    ]
