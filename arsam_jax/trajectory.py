r"""SAF and MESA: sharpness-aware training without a second gradient, by a term of the loss.

Both penalize how far the outputs of the network move along its own trajectory,

.. math::
    \frac{\lambda \tau^2}{B} \sum_i \mathrm{KL}\big(\mathrm{softmax}(z_i^{past} / \tau) \,\|\,
    \mathrm{softmax}(z_i / \tau)\big),

and differ in where the past logits come from. SAF stores the logits of each example from a few
epochs ago (``LogitMemory``). MESA computes them with a moving average of the weights::

    past = model.apply(ema_params, batch)                          # one more forward pass
    loss = loss + mesa_loss(past, logits, epoch)
    ema_params = optax.incremental_update(params, ema_params, 1 - MESA_DECAY)

These are terms of a loss and not transformations of a gradient: add them to the loss of the base
optimizer. The factor τ² and the defaults are those of the authors' code, its README and commands.
Epochs count from 0, and the term is active while ``start_epoch < epoch < end_epoch``.

References:
  Du et al., Sharpness-Aware Training for Free (arXiv 2205.14083), equations 7 and 8, and
  https://github.com/AngusDujw/SAF.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from arsam_jax import _check

START_EPOCH = 5
"""The default last epoch without the term."""

MESA_DECAY = 0.9998
"""The decay of MESA's moving average in the authors' code; 0.9995 in the paper."""


def trajectory_loss(
    past_logits: chex.Array,
    logits: chex.Array,
    *,
    temperature: chex.Numeric = 5.0,
    strength: chex.Numeric = 0.3,
) -> jax.Array:
    """The penalty of SAF and MESA in every epoch, a scalar of at least float32.

    Args:
      past_logits: z_past, (batch, classes); no gradient flows into them.
      logits: z, (batch, classes).
      temperature: τ > 0.
      strength: λ >= 0; the authors use 0.3 for SAF and 0.8 for MESA.

    Returns:
      The mean over the batch. It costs no gradient.

    Raises:
      ValueError: for logits of different shapes or a bad number.
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
    # A class that is masked out has logit -inf, and would give NaN even where it is not selected.
    past, now = (jnp.where(weight > 0, x, 0) for x in (past, now))
    divergence = jnp.sum(weight * (past - now), axis=-1).mean()
    factor = jnp.asarray(strength, divergence.dtype)
    return factor * jnp.asarray(temperature, divergence.dtype) ** 2 * divergence


def mesa_loss(
    past_logits: chex.Array,
    logits: chex.Array,
    epoch: Any,
    *,
    start_epoch: int = START_EPOCH,
    end_epoch: int = 360,
    temperature: chex.Numeric = 5.0,
    strength: chex.Numeric = 0.8,
) -> jax.Array:
    """MESA's term: ``trajectory_loss`` while ``start_epoch < epoch < end_epoch``, else 0.

    Args:
      past_logits: (batch, classes), computed with the averaged weights.
      logits: (batch, classes).
      epoch: int scalar, from 0.
      start_epoch: >= 0; the authors use 5, or 30 % of the epochs.
      end_epoch: of the term, >= 0.
      temperature: τ > 0.
      strength: λ >= 0.
    """
    term = trajectory_loss(past_logits, logits, temperature=temperature, strength=strength)
    return _while(epoch, start_epoch, end_epoch, term)


def _while(epoch, start_epoch, end_epoch, term):
    _check.check_integer("start_epoch", start_epoch, low=0)
    _check.check_integer("end_epoch", end_epoch, low=0)
    return jnp.where((epoch > start_epoch) & (epoch < end_epoch), term, 0)


class LogitMemory(NamedTuple):
    """SAF's memory: the logits that each example had in the last ``lag`` epochs.

    It holds lag × examples × classes numbers (6 MB for CIFAR-10 in float32, 15 GB for ImageNet) and
    one byte for each lag and example. It consists of arrays only, so it can be checkpointed with
    the rest of the state.

    Attributes:
      logits: (lag, examples, classes); epoch e is in row e mod lag.
      is_kept: bool, (lag, examples): where logits without NaN have been stored.
    """

    logits: jax.Array
    is_kept: jax.Array

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
        return cls(
            jnp.zeros([lag, num_examples, num_classes], dtype),
            jnp.zeros([lag, num_examples], bool),
        )

    def write(self, index: chex.Array, epoch: Any, logits: chex.Array) -> "LogitMemory":
        """Stores the logits of the examples ``index`` (int, (batch,)) of this epoch (from 0)."""
        row = epoch % self.logits.shape[0]
        logits = logits.astype(self.logits.dtype)
        is_kept = ~jnp.isnan(logits).any(axis=-1)
        return LogitMemory(
            self.logits.at[row, index].set(logits), self.is_kept.at[row, index].set(is_kept)
        )

    def loss(
        self,
        index: chex.Array,
        epoch: Any,
        logits: chex.Array,
        *,
        start_epoch: int = START_EPOCH,
        end_epoch: int = 300,
        temperature: chex.Numeric = 5.0,
        strength: chex.Numeric = 0.3,
    ) -> jax.Array:
        """SAF's term for the examples ``index``; call it before ``write`` of the same epoch.

        ``trajectory_loss`` while ``start_epoch < epoch < end_epoch``, else 0. An example without
        stored logits in that row adds 0.
        """
        row = epoch % self.logits.shape[0]
        kept = self.logits[row, index].astype(logits.dtype)
        past = jnp.where(self.is_kept[row, index][:, None], kept, logits)
        term = trajectory_loss(past, logits, temperature=temperature, strength=strength)
        return _while(epoch, start_epoch, end_epoch, term)
