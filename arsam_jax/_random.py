"""Keys in a state: raw arrays that every serializer takes, the same on every platform."""

import chex
import jax
import jax.numpy as jnp


def make_key(seed: int) -> jax.Array:
    """A raw threefry key, uint32 (2,), whatever the default implementation is."""
    return jax.random.key_data(jax.random.key(jnp.asarray(seed, jnp.uint32), impl="threefry2x32"))


def step_key(key: jax.Array, step: chex.Numeric) -> jax.Array:
    """The typed key of one step, a function of key and step alone."""
    return jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), step)


def draw(key: jax.Array, step: chex.Numeric, probability: chex.Numeric) -> jax.Array:
    """Whether an event of this probability happens in this step."""
    probability = jnp.asarray(probability, jnp.float32)
    return jax.random.uniform(step_key(key, step), dtype=jnp.float32) < probability
