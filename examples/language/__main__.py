"""Language: train a small model over bytes with several methods, fine-tune it and round it.

It measures three things for each trained model: its loss on unseen text, how much that loss rises
when the model is fine-tuned on another text (all weights, or LoRA adapters), and how much it rises
when weights are rounded to 4 bits. arXiv 2605.02105 measures them for SAM and a billion weights.

python -m examples.language                                   prose of Python's reference, then code
python -m examples.language --method base sam --seeds 0 1 2
python -m examples.language --text mine.txt --other-text yours.txt
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples.common import batch_norm, comparison, settings
from examples.common.pipeline import Order
from examples.language import data
from examples.language.network import Transformer, adapted, make_adapters, rounded

_EVALUATION_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Options(comparison.Options):
    """Train a language model over bytes with several methods, fine-tune it and round it.

    A table, all numbers and a figure are written to OUTPUT/NAME. Ctrl-C saves and stops, and
    --resume continues.
    """

    method: tuple[str, ...] = ("base", "sam", "arsam", "budgeted_sam")
    epochs: int = 2
    optimizer: str = "adamw"
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    rho: float = 0.05
    segment_length: int = 10

    text: Path | None = None
    """Training text, a file of at least 41 kB. By default the prose of Python's reference."""
    other_text: Path | None = None
    """Text for fine-tuning. By default code of Python's standard library."""
    length: int = 64
    """Length of an example in bytes."""
    width: int = 64
    """Size of the embeddings, a multiple of --heads."""
    depth: int = 2
    """Number of blocks of the transformer."""
    heads: int = 4
    """Number of attention heads."""
    dropout: float = 0.0
    """Rate of dropout, in [0, 1)."""
    bits: int = 4
    """Bits of the rounded weights, 2 to 8."""
    fine_tuning_steps: int = 200
    """Steps of fine-tuning, always with AdamW and a learning rate that falls linearly to 0."""
    fine_tuning_rate: float = 1e-3
    """Peak learning rate of fine-tuning all weights."""
    lora_rate: float = 3e-3
    """Peak learning rate of the adapters."""
    lora_rank: int = 8
    """Rank of the adapters."""


class Language(comparison.Task):
    """The task of language, see ``comparison.Task``. All losses are in bits per byte."""

    measures = {  # noqa: RUF012
        "loss": ("bits per byte", "{:.3f}"),
        "rounding": ("+ by rounding", "{:.4f}"),
        "forgotten": ("+ by fine-tuning", "{:.3f}"),
        "other": ("other text", "{:.3f}"),
        "lora_forgotten": ("+ by LoRA", "{:.3f}"),
        "lora_other": ("other text, LoRA", "{:.3f}"),
    }

    def __init__(self, options: Options):
        _check(options)
        self.options = options
        held_out = "validation" if options.validation else "test"
        text = data.windows(data.read(options.text, "prose"), options.length)
        other = data.windows(data.read(options.other_text, "code"), options.length)
        self.train, self.held_out = text["train"], text[held_out]
        self.other_train, self.other_held_out = other["train"], other[held_out]
        self.num_examples = len(self.train)
        self.model = Transformer(
            options.width, options.depth, options.heads, options.length, options.dropout
        )
        self._sum_of_losses = jax.jit(
            lambda params, windows: self._losses(params, windows).sum(dtype=jnp.float32)
        )
        self._fine_tune = jax.jit(self._fine_tuned, static_argnames=("rate", "with_adapters"))

    def new_state(self, tx: optax.GradientTransformation, seed: int) -> Any:
        key = jax.random.key(seed)
        params = self.model.init(key, self.train[:1, :-1], is_training=False)["params"]
        key = jax.random.PRNGKey(seed)
        return batch_norm.TrainState.create(
            apply_fn=self.model.apply, params=params, tx=tx, batch_stats={}, key=key
        )

    def batch(self, index: np.ndarray, step: int, seed: int) -> data.Batch:
        del step, seed  # Text is not augmented.
        return data.Batch(self.train[index], index.astype(np.int32))

    def train_step(self, state: Any, batch: Any, previous: Any) -> tuple[Any, jax.Array]:
        def losses(params, batch, step=state.step):
            key = jax.random.fold_in(state.key, step)
            return self._losses(params, batch.windows, key), {}

        step_before = jnp.maximum(state.step - 1, 0)
        previous_losses = functools.partial(losses, step=step_before)
        return batch_norm.train_step(state, batch, previous, losses, previous_losses)

    def evaluate(self, state: Any) -> dict[str, float]:
        return {"bits_a_byte": self._mean_loss(state.params, self.held_out)}

    def finish(self, state: Any, folder: Path) -> dict[str, float]:
        del folder
        options, params = self.options, state.params
        loss = self._mean_loss(params, self.held_out)
        after_rounding = self._mean_loss(rounded(params, options.bits), self.held_out)
        values = {"loss": loss, "rounding": after_rounding - loss}
        for name, rate, with_adapters in (
            ("", options.fine_tuning_rate, False),
            ("lora_", options.lora_rate, True),
        ):
            order = Order(len(self.other_train), options.batch_size, seed=0)
            batches = np.stack(
                [self.other_train[order(step)] for step in range(options.fine_tuning_steps)]
            )
            tuned = self._fine_tune(params, batches, rate=rate, with_adapters=with_adapters)
            values[f"{name}forgotten"] = self._mean_loss(tuned, self.held_out) - loss
            values[f"{name}other"] = self._mean_loss(tuned, self.other_held_out)
        return values

    def _losses(self, params, windows, key=None):
        """Return the loss of each window in bits per byte, (batch,)."""
        logits: Any = self.model.apply(
            {"params": params},
            windows[:, :-1],
            is_training=key is not None,
            rngs=None if key is None else {"dropout": key},
        )
        targets = windows[:, 1:].astype(jnp.int32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return losses.mean(1) / np.log(2).astype(np.float32)

    def _mean_loss(self, params, windows) -> float:
        size = min(_EVALUATION_BATCH, len(windows))
        starts = range(0, len(windows) - size + 1, size)  # Batches have one shape.
        total = sum(self._sum_of_losses(params, windows[s : s + size]) for s in starts)
        return float(total) / (len(starts) * size)

    def _fine_tuned(self, params, batches, *, rate, with_adapters):
        """Return the parameters after fine-tuning on ``batches`` (steps, batch, length + 1)."""
        options = self.options
        frozen, trainable = params, params
        if with_adapters:
            trainable = make_adapters(params, options.lora_rank, jax.random.key(0))

        def whole(trainable):
            return adapted(frozen, trainable) if with_adapters else trainable

        schedule = optax.linear_schedule(rate, 0, options.fine_tuning_steps)
        tx = optax.adamw(schedule, weight_decay=0.0)

        def step(carry, windows):
            trainable, opt_state = carry
            grads = jax.grad(lambda t: self._losses(whole(t), windows).mean())(trainable)
            updates, opt_state = tx.update(grads, opt_state, trainable)
            return (optax.apply_updates(trainable, updates), opt_state), None

        (trainable, _), _ = jax.lax.scan(step, (trainable, tx.init(trainable)), batches)
        return whole(trainable)


def _check(options: Options) -> None:
    settings.check_numbers(
        options,
        shares=("dropout",),
        positive=("length", "width", "depth", "heads", "fine_tuning_steps", "lora_rank"),
        not_negative=("fine_tuning_rate", "lora_rate"),
    )
    settings.require(
        options.width % options.heads == 0,
        f"--width {options.width} is not a multiple of --heads {options.heads}",
    )
    settings.require(2 <= options.bits <= 8, f"--bits must be 2 to 8, not {options.bits}")


if __name__ == "__main__":
    sys.exit(comparison.main(Options, Language, "language"))
