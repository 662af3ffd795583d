"""Keys in a state: raw arrays that every serializer takes, the same on every platform."""

import zlib

import chex
import jax
import jax.numpy as jnp


def make_key(seed: int, stream: str) -> jax.Array:
    """A raw threefry key, uint32 (2,), whatever the default implementation is.

    The name of the stream is folded into the key. Parts with equal seeds therefore draw
    independently of each other, and of a caller who folds steps into ``jax.random.key(seed)``.
    """
    key = jax.random.key(jnp.asarray(seed, jnp.uint32), impl="threefry2x32")
    return jax.random.key_data(jax.random.fold_in(key, jnp.uint32(zlib.crc32(stream.encode()))))


def step_key(key: jax.Array, step: chex.Numeric) -> jax.Array:
    """The typed key of one step, a function of key and step alone."""
    return jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), step)


def draw(key: jax.Array, step: chex.Numeric, probability: chex.Numeric) -> jax.Array:
    """Whether an event of this probability happens in this step."""
    probability = jnp.asarray(probability, jnp.float32)
    return jax.random.uniform(step_key(key, step), dtype=jnp.float32) < probability
