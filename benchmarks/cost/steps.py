"""Time, tracing, compilation and memory of single training steps."""

import functools
import statistics
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import arsam_jax
from arsam_jax.correction import NEVER
from benchmarks import table
from benchmarks.cost.networks import Network

RHO = 0.05
UNITS = ("base", "optax.contrib.sam")


def make_optimizers(base: Any) -> dict[str, Any]:
    """The optimizers of the steps, by name."""
    opaque_sam = optax.contrib.sam(
        base, optax.chain(optax.contrib.normalize(), optax.sgd(RHO)), opaque_mode=True
    )
    return {
        "base": optax.with_extra_args_support(base),
        "optax.contrib.sam": opaque_sam,
        "sam": optax.chain(arsam_jax.sam(RHO), base),
        "arsam": optax.chain(arsam_jax.arsam(RHO, reuse_steps=None), base),
        "budgeted_sam": optax.chain(arsam_jax.budgeted_sam(RHO, share=1 / 4), base),
    }


class Step(NamedTuple):
    """A kind of step: its optimizer, and the state in which the optimizer takes such a step."""

    optimizer: str
    prepare: Callable[[Any], Any] = lambda opt_state: opt_state


def _arsam_state(probability: float, age: int) -> Callable[[Any], Any]:
    """Sets the sampling probability of ARSAM and the number of steps since the last sample."""

    def prepare(opt_state):
        own = opt_state[0]
        sampling = own.sampling._replace(probability=jnp.float32(probability))
        return own._replace(sampling=sampling, age=jnp.int32(age)), *opt_state[1:]

    return prepare


def _budgeted_state(credit: float) -> Callable[[Any], Any]:
    """Sets the number of samples that are due."""

    def prepare(opt_state):
        own = opt_state[0]
        sampling = own.sampling._replace(credit=jnp.float32(credit))
        return own._replace(sampling=sampling, age=jnp.int32(0)), *opt_state[1:]

    return prepare


STEPS = {
    "base": Step("base"),
    "base again": Step("base"),  # shows the noise of the measurement
    "optax.contrib.sam": Step("optax.contrib.sam"),
    "sam": Step("sam"),
    "arsam, plain step": Step("arsam", _arsam_state(0, NEVER)),
    "arsam, reuse step": Step("arsam", _arsam_state(0, 0)),
    "arsam, sampled step": Step("arsam", _arsam_state(1, NEVER)),
    "budgeted_sam, reuse step": Step("budgeted_sam", _budgeted_state(-100)),
    "budgeted_sam, sampled step": Step("budgeted_sam", _budgeted_state(1)),
}


class Program:
    """A compiled, donated training step of one optimizer, with its parameters and state."""

    def __init__(self, network: Network, optimizer: str):
        module, batch = network.module, network.make_batch()
        arguments = dict(network.arguments)
        variables = jax.jit(functools.partial(module.init, **arguments))(
            jax.random.key(1), batch[0]
        )
        base = optax.adamw(1e-3) if network.base == "adamw" else optax.sgd(1e-3, momentum=0.9)
        tx = make_optimizers(base)[optimizer]

        def gradient(params, batch_stats, batch):
            def loss_fn(params):
                outputs, changed = module.apply(
                    {"params": params, "batch_stats": batch_stats},
                    batch[0],
                    mutable=["batch_stats"],
                    **arguments,
                )
                losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1])
                return losses.mean(), changed.get("batch_stats", {})

            return jax.grad(loss_fn, has_aux=True)(params)

        def step(state, batch):
            params, batch_stats, opt_state = state
            grads, new_batch_stats = gradient(params, batch_stats, batch)
            updates, opt_state = tx.update(
                grads,
                opt_state,
                params,
                grad_fn=lambda params, *_: gradient(params, batch_stats, batch)[0],
            )
            return optax.apply_updates(params, updates), new_batch_stats, opt_state

        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        self.num_arrays = len(jax.tree.leaves(params))
        self.num_parameters = sum(x.size for x in jax.tree.leaves(params))
        self._batch, self._state = batch, (params, batch_stats, jax.jit(tx.init)(params))
        jax.clear_caches()
        start = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=0).lower(self._state, batch)
        self.trace_seconds = time.perf_counter() - start
        self._compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - start - self.trace_seconds
        memory: Any = self._compiled.memory_analysis()
        self.memory_bytes = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
        )

    def seconds(self, prepare: Callable[[Any], Any]) -> float:
        """Takes one step and returns its duration."""
        params, batch_stats, opt_state = self._state
        state = jax.block_until_ready((params, batch_stats, prepare(opt_state)))
        start = time.perf_counter()
        self._state = jax.block_until_ready(self._compiled(state, self._batch))
        return time.perf_counter() - start


def measure(
    name: str, network: Network, rounds: int, done: Collection[tuple[str, str]], cores: int
) -> Iterator[dict[str, Any]]:
    """Yields a row for each kind of step that is not done.

    A row compares a step with both units. In each round the three take one step, in alternating
    order. The reported ratio is the median over the rounds, so that disturbances of the machine
    that last longer than a round cancel.

    Args:
      done: the finished (network, step).
    """
    programs: dict[str, Program] = {}
    missing = [step for step in STEPS if (name, step) not in done]
    for step in missing:
        for needed in (*UNITS, STEPS[step].optimizer):
            if needed not in programs:
                programs[needed] = Program(network, needed)
        yield _row(name, network, step, programs, rounds) | {"cores": cores} | table.provenance()


def _row(
    name: str, network: Network, step: str, programs: dict[str, Program], rounds: int
) -> dict[str, Any]:
    compared = {"step": STEPS[step], **{unit: STEPS[unit] for unit in UNITS}}
    times: dict[str, list[float]] = {key: [] for key in compared}
    for number in range(rounds + 2):
        for key in compared if number % 2 else reversed(compared):
            own = compared[key]
            seconds = programs[own.optimizer].seconds(own.prepare)
            if number >= 2:  # the first two are warm-up
                times[key].append(seconds)
    program = programs[STEPS[step].optimizer]
    row: dict[str, Any] = {
        "network": name,
        "step": step,
        "batch_size": network.batch_size,
        "parameters": program.num_parameters,
        "arrays": program.num_arrays,
        "rounds": rounds,
        "milliseconds": round(1000 * statistics.median(times["step"]), 4),
    }
    for unit, key in zip(UNITS, ("base", "sam"), strict=True):
        ratios = [a / b for a, b in zip(times["step"], times[unit], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        row |= {f"times_{key}": round(median, 4)}
        row |= {f"times_{key}_low": round(low, 4), f"times_{key}_high": round(high, 4)}
    return row | {
        "trace_seconds": round(program.trace_seconds, 3),
        "compile_seconds": round(program.compile_seconds, 3),
        "memory_bytes": program.memory_bytes,
    }
