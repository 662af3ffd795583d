r"""SAF and MESA: sharpness-aware training without a second gradient, by a term of the loss.

Both penalise how far the outputs of the network move along its own trajectory,

.. math::
    \frac{\lambda}{B} \sum_i \mathrm{KL}\big(\mathrm{softmax}(z_i^{past} / \tau) \,\|\,
    \mathrm{softmax}(z_i / \tau)\big),

and differ in where the past logits come from. SAF keeps those of each example from a few epochs
ago (``LogitMemory``); MESA computes them with a moving average of the weights::

    past = model.apply(ema_params, batch)                          # one more forward pass
    loss = loss + trajectory_loss(past, logits)
    ema_params = optax.incremental_update(params, ema_params, 1 - 0.9995)

These are terms of a loss and not transformations of a gradient: add them to the loss of plain SGD.

References:
  Du et al., Sharpness-Aware Training for Free (arXiv 2205.14083), equations 7 and 8.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from arsam_jax import _check


def trajectory_loss(
    past_logits: chex.Array,
    logits: chex.Array,
    *,
    temperature: chex.Numeric = 5.0,
    strength: chex.Numeric = 0.3,
) -> jax.Array:
    """The penalty above, a scalar of at least float32.

    Args:
      past_logits: z_past, (batch, classes); no gradient flows into them.
      logits: z, (batch, classes).
      temperature: τ > 0.
      strength: λ >= 0.
    """
    _check.check_number("temperature", temperature, above=0)
    _check.check_number("strength", strength, low=0)
    if jnp.shape(past_logits) != jnp.shape(logits):
        raise ValueError(
            f"past_logits must have the shape {jnp.shape(logits)} of logits, got"
            f" {jnp.shape(past_logits)}."
        )

    def log_probabilities(z):
        z = jnp.asarray(z, jnp.promote_types(z.dtype, jnp.float32))
        return jax.nn.log_softmax(z / jnp.asarray(temperature, z.dtype))

    past = log_probabilities(jax.lax.stop_gradient(past_logits))
    now = log_probabilities(logits)
    weight = jnp.exp(past)
    difference = jnp.where(weight > 0, past - now, 0)  # a class that is masked out has logit -inf
    divergence = jnp.sum(weight * difference, axis=-1).mean()
    return jnp.asarray(strength, divergence.dtype) * divergence


class LogitMemory(NamedTuple):
    """SAF's memory: the logits that each example had in the last ``lag`` epochs.

    Its cost is lag × examples × classes numbers: 6 MB for CIFAR-10 in float32, 15 GB for ImageNet.
    Arrays only, so it is checkpointed with the rest of the state.

    Attributes:
      logits: (lag, examples, classes); epoch e is in row e mod lag, NaN where nothing is kept yet.
    """

    logits: jax.Array

    @classmethod
    def create(
        cls, num_examples: int, num_classes: int, *, lag: int = 3, dtype: Any = jnp.float32
    ) -> "LogitMemory":
        """An empty memory.

        Args:
          num_examples: N, of the training set.
          num_classes: C.
          lag: Ẽ >= 1, how many epochs ago the past logits were.
          dtype: of the kept logits; bfloat16 halves the memory.
        """
        for name, value in (
            ("num_examples", num_examples),
            ("num_classes", num_classes),
            ("lag", lag),
        ):
            _check.check_integer(name, value, low=1)
        _check.check_floating_dtype("dtype", dtype)
        return cls(jnp.full([lag, num_examples, num_classes], jnp.nan, dtype))

    def write(self, index: chex.Array, epoch: Any, logits: chex.Array) -> "LogitMemory":
        """Keeps the logits of the examples ``index`` (int, (batch,)) of this epoch (from 0)."""
        row = epoch % self.logits.shape[0]
        kept = self.logits.at[row, index].set(logits.astype(self.logits.dtype))
        return LogitMemory(kept)

    def loss(
        self,
        index: chex.Array,
        epoch: Any,
        logits: chex.Array,
        *,
        start_epoch: int = 5,
        temperature: chex.Numeric = 5.0,
        strength: chex.Numeric = 0.3,
    ) -> jax.Array:
        """SAF's term for the examples ``index``; call it before ``write`` of the same epoch.

        0 before ``start_epoch``. An example of which nothing is kept in that row adds 0.
        """
        _check.check_integer("start_epoch", start_epoch, low=0)
        kept = self.logits[epoch % self.logits.shape[0], index].astype(logits.dtype)
        past = jnp.where(jnp.isnan(kept), logits, kept)
        term = trajectory_loss(past, logits, temperature=temperature, strength=strength)
        return jnp.where(epoch >= start_epoch, term, 0)
