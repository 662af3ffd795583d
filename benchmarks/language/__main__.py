"""What survives fine-tuning and rounding, as ``registration.md`` says.

python -m benchmarks.language --text rfcs.txt --other-text code.txt
python -m benchmarks.language --text rfcs.txt --other-text code.txt --width 512 --depth 8
python -m benchmarks.language --smoke

Writes two CSV files and the base models into --output, goes on from them, and prints the table.
"""

import argparse
import csv
import hashlib
import itertools
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax

import arsam_jax
from arsam_jax import functional
from benchmarks.language import analysis
from examples.language import data
from examples.language.network import Transformer, adapted, make_adapters, rounded

WITHOUT_RADIUS = ("adamw", "average", "larger_rate", "short_decay")
FUNCTIONAL = ("functional", "preconditioned", "functional_4", "functional_8", "functional_32")
ARMS = (*WITHOUT_RADIUS, "sam", *FUNCTIONAL, "arsam")
SEARCH_SEEDS = (1000, 1001)
RATES, RADII, DECAYS = (0.5, 1.0, 2.0), (0.02, 0.1, 0.5), (0.0, 0.1, 0.3)
POINTS, BITS, AVERAGE_DECAY, SHARPNESS_RADIUS = 4, (8, 4, 3), 0.98, 0.05
FINE_TUNING_RATES, LORA_RANK, LORA_FACTOR = (1e-4, 3e-4, 1e-3), 8, 10


class Trial(NamedTuple):
    """An arm with its hyperparameters: ``value`` is ρ, or the weight decay without a radius."""

    arm: str
    rate: float  # in units of the base rate
    value: float


NUMBERS = {"data": 10**9, "width": 128, "depth": 4, "heads": 4, "length": 128, "batch": 64}
NUMBERS |= {"steps": 3000, "fine_tuning_steps": 100, "evaluated": 4096}
SMOKE = {"width": 16, "depth": 1, "length": 16, "batch": 8, "steps": 40, "data": 200_000}
SMOKE |= {"fine_tuning_steps": 4, "evaluated": 16, "seeds": [0, 1]}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What survives fine-tuning and rounding.")
    parser.add_argument("--text", type=Path, help="what is learned, a file of at least 10 MB")
    parser.add_argument("--other-text", type=Path, help="what the models are fine-tuned on")
    for name, default in NUMBERS.items():  # what they mean is in registration.md
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--base-rate", type=float, default=2e-3, help="of the base phase")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--output", type=Path, default=Path("results/language"))
    parser.add_argument("--smoke", action="store_true", help="a tiny run of the whole program")
    options = parser.parse_args()
    if options.smoke:
        vars(options).update(SMOKE)
    elif options.text is None or options.other_text is None:
        parser.error("--text and --other-text are needed (only --smoke runs without them)")
    if options.width % options.heads:
        parser.error(f"--width must be a multiple of --heads, got {options.width}")
    return options


def adamw(schedule: Any, weight_decay: float) -> optax.GradientTransformation:
    rule = optax.adamw(schedule, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(1.0), rule)


class Experiment:
    """The texts, the model and the compiled functions that all runs share."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.last_steps = max(POINTS, options.steps // 5 // POINTS * POINTS)
        files = (options.text, "prose"), (options.other_text, "code")
        texts = [data.read(file, what)[: options.data] for file, what in files]
        self.text, self.other = (data.windows(text, options.length) for text in texts)
        steps = range(options.fine_tuning_steps)
        self.other_batches = np.stack([self.batch(self.other["train"], 0, i) for i in steps])
        self.model = Transformer(options.width, options.depth, options.heads, options.length)
        describe = ["git", "describe", "--always", "--dirty"]
        self.provenance = {
            "commit": subprocess.run(describe, capture_output=True, text=True).stdout.strip(),
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "text": hashlib.sha256(texts[0]).hexdigest()[:16],
            "other_text": hashlib.sha256(texts[1]).hexdigest()[:16],
            **{name: getattr(options, name) for name in (*NUMBERS, "base_rate")},
        }
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
        """Parameters and optimizer state after the base phase, from a file if it was run before."""
        key = jax.random.key(seed)
        params = self.model.init(key, self.text["train"][:1, :-1], is_training=False)["params"]
        warm_up, rate = max(1, self.options.steps // 20), self.options.base_rate
        tx = adamw(optax.linear_schedule(0.0, rate, warm_up), weight_decay=0.1)
        state = params, tx.init(params)
        size = f"{self.options.width}x{self.options.depth}-{self.options.steps}"
        file = self.options.output / f"base-{size}-{seed}.msgpack"
        if file.exists():
            restored = flax.serialization.from_bytes(state, file.read_bytes())
            return jax.tree.map(jnp.asarray, restored)

        @jax.jit
        def train_step(params, opt_state, windows):
            grads = jax.grad(self.loss)(params, windows)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        for step in range(self.options.steps):
            state = train_step(*state, self.batch(self.text["train"], seed, step))
        partial = file.with_suffix(".partial")
        partial.write_bytes(flax.serialization.to_bytes(state))
        partial.rename(file)
        return state

    def schedule(self, trial: Trial) -> Any:
        """The rate by the step of the whole run, the base phase included."""
        first, rate = self.options.steps, trial.rate * self.options.base_rate
        constant = self.last_steps // 2 if trial.arm == "short_decay" else 0
        return optax.linear_schedule(rate, 0.0, self.last_steps - constant, first + constant)

    def method(self, trial: Trial) -> optax.GradientTransformation | None:
        if trial.arm in WITHOUT_RADIUS:
            return None
        if trial.arm.startswith("functional_"):
            return arsam_jax.budgeted_sam(trial.value, share=1 / int(trial.arm.split("_")[1]))
        if trial.arm == "preconditioned":
            return arsam_jax.preconditioned_sam(trial.value)
        if trial.arm == "arsam":
            return arsam_jax.arsam(trial.value, segment_length=20)
        return arsam_jax.sam(trial.value)

    def trained(self, trial: Trial, seed: int) -> Iterable[tuple[int, Any, dict[str, float]]]:
        """The parameters at each quarter of the last phase, and what a step cost."""
        method = self.method(trial)
        base = adamw(self.schedule(trial), weight_decay=0.1 if method else trial.value)
        tx = optax.chain(method, base) if method else optax.with_extra_args_support(base)
        params, opt_state = self.base(seed)
        if method:
            opt_state = arsam_jax.from_base_state(tx.init(params), opt_state)

        def value_and_grad(params, windows):
            if trial.arm in FUNCTIONAL:
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

        state, start = (params, opt_state, params), time.perf_counter()
        for step in range(self.last_steps):
            windows = self.batch(self.text["train"], seed, self.options.steps + step)
            state = train_step(*state, windows)
            if (step + 1) % (self.last_steps // POINTS) == 0:
                jax.block_until_ready(state)
                seconds = (time.perf_counter() - start) / (self.last_steps // POINTS)
                share = arsam_jax.metrics_dict(state[1])["sampled_share"] if method else 0
                cost = {"gradients_per_step": 1 + share, "seconds_per_step": seconds}
                yield step + 1, state[2 if trial.arm == "average" else 0], cost
                start = time.perf_counter()

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


class Rows:
    """A CSV file to which rows are added. All have the same texts and options."""

    def __init__(self, file: Path, provenance: dict[str, Any]):
        self.file, self.provenance = file, provenance
        self.rows = list(csv.DictReader(file.open(newline=""))) if file.exists() else []
        for name in set(provenance) - {"commit", "device", "jax"}:
            if {row[name] for row in self.rows} - {str(provenance[name])}:
                raise SystemExit(f"{file} has rows with another {name}. Choose another --output.")

    def find(self, **key: Any) -> list[dict[str, str]]:
        return [r for r in self.rows if all(r[name] == str(x) for name, x in key.items())]

    def add(self, row: dict[str, Any]) -> None:
        text = {name: str(value) for name, value in (row | self.provenance).items()}
        with self.file.open("a", newline="") as lines:
            writer = csv.DictWriter(lines, fieldnames=list(text))
            if not self.rows:
                writer.writeheader()
            writer.writerow(text)
        self.rows.append(text)


def search(experiment: Experiment, rows: Rows, arm: str, chosen: dict[str, Trial]) -> Trial:
    """The trial of an arm with the lowest validation loss."""
    is_smoke, means = experiment.options.smoke, {}
    rates, values = RATES, DECAYS if arm in WITHOUT_RADIUS else RADII
    if arm == "larger_rate":
        rates = tuple(factor * chosen["adamw"].rate for factor in (1.0, 2.0, 4.0))
    trials = [Trial(arm, rate, value) for rate, value in itertools.product(rates, values)]
    for trial in trials[4:5] if is_smoke else trials:
        losses = []
        for seed in SEARCH_SEEDS[: 1 if is_smoke else None]:
            key = {**trial._asdict(), "seed": seed}
            if not rows.find(**key):
                *_, (_, params, _) = experiment.trained(trial, seed)
                loss = experiment.mean_loss(params, experiment.text["validation"])
                rows.add(key | {"validation_loss": loss})
                print(f"search: {trial} seed {seed}: {loss:.4f} bits per byte", flush=True)
            losses.append(float(rows.find(**key)[0]["validation_loss"]))
        means[trial] = np.mean(losses) if np.isfinite(losses).all() else np.inf
    return min(means, key=lambda trial: means[trial])


def trajectories(rows: Rows) -> dict[Any, dict[str, Any]]:
    """The measures of each complete run, in the order of its points, of seeds that are finite."""
    runs, failed, rates = {}, set(), range(len(FINE_TUNING_RATES))
    for arm, seed in sorted({(row["arm"], row["seed"]) for row in rows.rows}):
        points = sorted(rows.find(arm=arm, seed=seed), key=lambda row: int(row["step"]))
        run: dict[str, Any] = {}
        for name in ("loss", "sharpness", *(f"rounding_{bits}" for bits in BITS)):
            run[name] = [float(point[name]) for point in points]
        for name in ("learned", "forgotten", "lora_learned", "lora_forgotten"):
            run[name] = [[float(point[f"{name}_{i}"]) for i in rates] for point in points]
        if not np.isfinite(run["loss"]).all():
            failed.add(seed)
            print(f"seed {seed} is excluded, since {arm} is not finite")
        elif len(points) == POINTS:
            runs[arm, seed] = run
    return {key: run for key, run in runs.items() if key[1] not in failed}


def main() -> None:
    options = parse()
    options.output.mkdir(parents=True, exist_ok=True)
    experiment = Experiment(options)
    found = Rows(options.output / "search.csv", experiment.provenance)
    measured = Rows(options.output / "measures.csv", experiment.provenance)
    arms = [arm for arm in ARMS if arm in {"adamw", *options.arms}]
    chosen: dict[str, Trial] = {}
    for arm in arms:
        chosen[arm] = search(experiment, found, arm, chosen)
    for seed, arm in itertools.product(options.seeds, arms):
        if len(measured.find(arm=arm, seed=seed)) == POINTS:
            continue
        for step, params, cost in experiment.trained(chosen[arm], seed):
            if not measured.find(arm=arm, seed=seed, step=step):
                key = {**chosen[arm]._asdict(), "seed": seed, "step": step}
                measured.add(key | experiment.measures(params) | cost)
        print(f"seed {seed}, {arm}: measured", flush=True)
    print(analysis.table(trajectories(measured)))


if __name__ == "__main__":
    main()
