"""The base phase, the last phase with each arm, and the measures of `registration.md`."""

import dataclasses
import functools
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import arsam_jax
from arsam_jax import functional
from benchmarks import search, table
from benchmarks.language.report import ARMS, BITS, FINE_TUNING_RATES, POINTS
from examples.language import data
from examples.language.network import Transformer, adapted, make_adapters, rounded

SEARCH_SEEDS = (1000, 1001)
WITHOUT_RADIUS = ("adamw", "average", "larger_rate", "short_decay", "adamw_decay")
LAST_DECAY = 0.1  # of the arms with a radius, and of adamw_decay
FUNCTIONAL = ("functional", "preconditioned", "functional_4", "functional_8", "functional_32")
AVERAGE_DECAY, SHARPNESS_RADIUS, LORA_RANK, LORA_FACTOR = 0.98, 0.05, 8, 10
HEADS = 4


class Run(NamedTuple):
    """``value`` is the radius, or the weight decay of an arm without one."""

    stage: str  # search or run
    arm: str
    rate: float  # in units of the base rate
    value: float
    seed: int
    size: str  # of the model and of the experiment


@dataclasses.dataclass(frozen=True)
class Options(search.Options):
    csv: Path = table.RESULTS / "language.csv"
    """File of the results. The search, the tables and the figure are written beside it."""
    text: Path | None = None
    """The text that is learned, at least 10 MB."""
    other_text: Path | None = None
    """The text on which the models are fine-tuned."""
    arms: tuple[str, ...] = ARMS
    """Arms to run. AdamW, with which the others are compared, always runs."""
    seeds: tuple[int, ...] = tuple(range(10))
    width: int = 64
    depth: int = 2
    length: int = 64
    """Bytes of context."""
    batch: int = 32
    """Windows in a mini-batch."""
    steps: int = 2000
    """Steps of the base phase. The last phase has a fifth of them."""
    base_rate: float = 2e-3
    """Learning rate of the base phase."""
    fine_tuning_steps: int = 50
    evaluated: int = 512
    """Windows of the validation and test texts on which losses are measured."""
    smoke: bool = False
    """Only try the program, in a minute: a tiny model and texts that come with Python."""


def _adamw(schedule: Any, weight_decay: float) -> optax.GradientTransformation:
    rule = optax.adamw(schedule, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(1.0), rule)


class Experiment:
    """The texts, the model and the compiled functions that all runs share."""

    def __init__(self, options: Options):
        self.options = options
        self.last_steps = max(POINTS, options.steps // 5 // POINTS * POINTS)
        files = (options.text, "prose"), (options.other_text, "code")
        texts = [data.read(file, what) for file, what in files]
        self.text, self.other = (data.windows(text, options.length) for text in texts)
        steps = range(options.fine_tuning_steps)
        self.other_batches = np.stack([self.batch(self.other["train"], 0, i) for i in steps])
        self.model = Transformer(options.width, options.depth, HEADS, options.length)
        o, (first, second) = options, (hashlib.sha256(text).hexdigest()[:8] for text in texts)
        self.size = (
            f"{o.width}x{o.depth}; {o.length} bytes; batches of {o.batch}; {o.steps} steps at"
            f" {o.base_rate:g}; {o.fine_tuning_steps} of fine-tuning; {o.evaluated} evaluated; text"
            f" {first}; other text {second}"
        )
        self.base = functools.lru_cache(len(SEARCH_SEEDS))(self.base)
        self._loss = jax.jit(self.loss)
        self._gradient = jax.jit(jax.grad(self.loss))
        self._fine_tuned = jax.jit(self._fine_tune, static_argnames="with_adapters")

    def outputs(self, params: Any, windows: Any) -> Any:
        return self.model.apply({"params": params}, windows[:, :-1], is_training=False)

    def loss_of_outputs(self, logits: Any, windows: Any) -> jax.Array:
        """Bits per byte."""
        targets = windows[:, 1:].astype(jnp.int32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return losses.mean() / np.log(2).astype(np.float32)

    def loss(self, params: Any, windows: Any) -> jax.Array:
        return self.loss_of_outputs(self.outputs(params, windows), windows)

    def mean_loss(self, params: Any, windows: np.ndarray) -> float:
        count = min(self.options.evaluated, len(windows))
        chosen = windows[np.linspace(0, len(windows) - 1, count).astype(int)]
        size = min(self.options.batch, count)
        starts = range(0, count - size + 1, size)
        return float(np.mean([self._loss(params, chosen[s : s + size]) for s in starts]))

    def batch(self, windows: np.ndarray, seed: int, step: int) -> np.ndarray:
        rows = np.random.default_rng([seed, step]).integers(len(windows), size=self.options.batch)
        return windows[rows]

    def base(self, seed: int) -> Any:
        """Parameters and optimizer state after the base phase."""
        key, steps = jax.random.key(seed), self.options.steps
        params = self.model.init(key, self.text["train"][:1, :-1], is_training=False)["params"]
        warm_up = optax.linear_schedule(0.0, self.options.base_rate, max(1, steps // 20))
        tx = optax.with_extra_args_support(_adamw(warm_up, weight_decay=0.1))
        train_step, state = self._train_step("adamw", tx), (params, tx.init(params), params)
        for step in range(steps):
            state = train_step(*state, self.batch(self.text["train"], seed, step))
        return state[:2]

    def _train_step(self, arm: str, tx: optax.GradientTransformationExtraArgs) -> Any:
        def value_and_grad(params, windows):
            if arm in FUNCTIONAL:
                take = functional.value_and_grad(self.outputs, self.loss_of_outputs)
                return take(params, windows)[1:]
            return jax.grad(self.loss)(params, windows), lambda p: jax.grad(self.loss)(p, windows)

        @jax.jit
        def train_step(params, opt_state, average, windows):
            grads, grad_fn = value_and_grad(params, windows)
            updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)
            params = optax.apply_updates(params, updates)
            average = optax.incremental_update(params, average, 1 - AVERAGE_DECAY)
            return params, opt_state, average

        return train_step

    def _schedule(self, run: Run) -> Any:
        """The rate by the step of the whole run, the base phase included."""
        first, rate = self.options.steps, run.rate * self.options.base_rate
        constant = self.last_steps // 2 if run.arm == "short_decay" else 0
        return optax.linear_schedule(rate, 0.0, self.last_steps - constant, first + constant)

    def last_phase(self, run: Run) -> Iterator[tuple[Any, dict[str, float]]]:
        """The parameters at each quarter of the last phase, and what a step of it cost."""
        method = _method(run.arm, run.value)
        base = _adamw(self._schedule(run), weight_decay=LAST_DECAY if method else run.value)
        tx = optax.chain(method, base) if method else optax.with_extra_args_support(base)
        params, opt_state = self.base(run.seed)
        if method:
            opt_state = arsam_jax.from_base_state(tx.init(params), opt_state)

        train_step, state = self._train_step(run.arm, tx), (params, opt_state, params)
        quarter = self.last_steps // POINTS
        for point in range(POINTS):
            start = time.perf_counter()
            for step in range(point * quarter, (point + 1) * quarter):
                windows = self.batch(self.text["train"], run.seed, self.options.steps + step)
                state = train_step(*state, windows)
            jax.block_until_ready(state)
            seconds = (time.perf_counter() - start) / quarter
            share = arsam_jax.metrics_dict(state[1])["sampled_share"] if method else 0
            cost = {"gradients_per_step": 1 + share, "seconds_per_step": seconds}
            yield state[2 if run.arm == "average" else 0], cost

    def measures(self, params: Any) -> dict[str, float]:
        test, other = self.text["test"], self.other_batches
        loss = self.mean_loss(params, test)
        found = {"loss": loss}
        for bits in BITS:
            found[f"rounding_{bits}"] = self.mean_loss(rounded(params, bits), test) - loss
        one_batch = test[: self.options.batch]
        grads = self._gradient(params, one_batch)
        factor = SHARPNESS_RADIUS / optax.tree.norm(grads)
        moved = jax.tree.map(lambda w, g: w + factor * g, params, grads)
        found["sharpness"] = float(self._loss(moved, one_batch) - self._loss(params, one_batch))
        for with_adapters, kind in ((False, ""), (True, "lora_")):
            for place, rate in enumerate(FINE_TUNING_RATES):
                rate = jnp.float32(rate * LORA_FACTOR if with_adapters else rate)
                tuned = self._fine_tuned(params, other, rate, with_adapters=with_adapters)
                found[f"{kind}forgotten_{place}"] = self.mean_loss(tuned, test) - loss
                found[f"{kind}learned_{place}"] = self.mean_loss(tuned, self.other["test"])
        return found

    def _fine_tune(self, params, batches, rate, *, with_adapters):
        trainable = make_adapters(params, LORA_RANK, jax.random.key(0)) if with_adapters else params
        tx = optax.adamw(lambda count: rate * (1 - count / len(batches)), weight_decay=0.0)

        def whole(trainable):
            return adapted(params, trainable) if with_adapters else trainable

        def step(carry, windows):
            trainable, opt_state = carry
            grads = jax.grad(lambda t: self.loss(whole(t), windows))(trainable)
            updates, opt_state = tx.update(grads, opt_state, trainable)
            return (optax.apply_updates(trainable, updates), opt_state), None

        (trainable, _), _ = jax.lax.scan(step, (trainable, tx.init(trainable)), batches)
        return whole(trainable)


def _method(arm: str, rho: float) -> optax.GradientTransformation | None:
    if arm in WITHOUT_RADIUS:
        return None
    if arm.startswith("functional_"):
        return arsam_jax.budgeted_sam(rho, share=1 / int(arm.split("_")[1]))
    if arm == "preconditioned":
        return arsam_jax.preconditioned_sam(rho)
    if arm == "arsam":
        return arsam_jax.arsam(rho, segment_length=20)
    return arsam_jax.sam(rho)


make = functools.cache(Experiment)


def execute(run: Run, options: Options) -> dict[str, Any]:
    """The row of a run: its validation loss, or the measures at each quarter of the last phase."""
    experiment, row = make(options), run._asdict()
    points = experiment.last_phase(run)
    if run.stage == "search":
        *_, (params, _) = points
        row["validation_loss"] = experiment.mean_loss(params, experiment.text["validation"])
    else:
        for place, (params, cost) in enumerate(points, 1):
            measured = experiment.measures(params) | cost
            row |= {f"{name}_at_{place}": value for name, value in measured.items()}
    return row | table.provenance()
