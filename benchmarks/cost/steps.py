"""Time, tracing, compilation and memory of single training steps."""

import functools
import math
import statistics
import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import arsam_jax
from arsam_jax.correction import NEVER
from benchmarks import table
from benchmarks.cost.networks import Network

RHO = 0.05
UNITS = {"base": "times_base", "optax.contrib.sam": "times_sam"}  # and the columns of the ratios
WARM_UP = 2  # rounds


def _opaque_sam(base: Any) -> Any:
    normalized = optax.chain(optax.contrib.normalize(), optax.sgd(RHO))
    return optax.contrib.sam(base, normalized, opaque_mode=True)


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {  # made from the base optimizer
    "base": optax.with_extra_args_support,
    "optax.contrib.sam": _opaque_sam,
    "sam": lambda base: optax.chain(arsam_jax.sam(RHO), base),
    "arsam": lambda base: optax.chain(arsam_jax.arsam(RHO, reuse_steps=None), base),
    "budgeted_sam": lambda base: optax.chain(arsam_jax.budgeted_sam(RHO, share=1 / 4), base),
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
    """A compiled, donated training step of one optimizer, with its parameters and state.

    Attributes:
      facts: the columns about the network and about the compilation.
    """

    def __init__(
        self, network: Network, variables: Any, optimizer: str, clock: Callable[[], float]
    ):
        module, batch = network.module, network.make_batch()
        arguments: Any = dict(network.arguments)
        base = optax.adamw(1e-3) if network.base == "adamw" else optax.sgd(1e-3, momentum=0.9)
        tx = OPTIMIZERS[optimizer](base)

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

        variables = jax.tree.map(jnp.copy, variables)  # A step donates them.
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        self._batch, self._state = batch, (params, batch_stats, jax.jit(tx.init)(params))
        self._clock = clock
        jax.clear_caches()
        start = clock()
        lowered = jax.jit(step, donate_argnums=0).lower(self._state, batch)
        traced = clock()
        self._compiled = lowered.compile()
        compiled = clock()
        memory: Any = self._compiled.memory_analysis()
        self.facts = {
            "parameters": sum(x.size for x in jax.tree.leaves(params)),
            "arrays": len(jax.tree.leaves(params)),
            "trace_seconds": round(traced - start, 3),
            "compile_seconds": round(compiled - traced, 3),
            "memory_bytes": memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes,
        }

    def seconds(self, prepare: Callable[[Any], Any]) -> float:
        """Takes one step and returns its duration."""
        params, batch_stats, opt_state = self._state
        state = jax.block_until_ready((params, batch_stats, prepare(opt_state)))
        start = self._clock()
        self._state = jax.block_until_ready(self._compiled(state, self._batch))
        return self._clock() - start


def measure(
    name: str,
    network: Network,
    optimizers: Collection[str],
    cores: int,
    check_time: Callable[[str], None] = lambda task: None,
) -> list[dict[str, Any]]:
    """Times the steps of these optimizers and returns a row for each kind of step.

    In each round every kind of step is taken once, in alternating order. A reported ratio is the
    median over the rounds, so that disturbances of the machine that last longer than a round
    cancel.

    Args:
      cores: the cores that the process is pinned to. On a single core CPU time is measured, which
        other processes disturb less, otherwise the time that passes.
      check_time: called before each part of the work with its description.
    """
    clock = time.process_time if cores == 1 else time.perf_counter
    initialize = jax.jit(functools.partial(network.module.init, **dict(network.arguments)))
    variables = initialize(jax.random.key(1), network.make_batch()[0])
    programs: dict[str, Program] = {}
    for optimizer in optimizers:
        check_time(f"{name}: compiling {optimizer}")
        programs[optimizer] = Program(network, variables, optimizer, clock)
    compared = {key: step for key, step in STEPS.items() if step.optimizer in optimizers}
    times: dict[str, list[float]] = {key: [] for key in compared}
    check_time(f"{name}: timing its steps")
    for number in range(WARM_UP + network.rounds):
        for key in compared if number % 2 else reversed(compared):
            own = compared[key]
            seconds = programs[own.optimizer].seconds(own.prepare)
            if number >= WARM_UP:
                times[key].append(seconds)
    return [
        {"network": name, "step": key, "batch_size": network.batch_size}
        | _measured(times, key)
        | programs[step.optimizer].facts
        | {"rounds": network.rounds, "cores": cores}
        | table.provenance()
        for key, step in compared.items()
    ]


def _measured(times: dict[str, list[float]], key: str) -> dict[str, float]:
    """The median time of a step, and the quartiles of its ratios. NaN without a unit."""
    measured = {"milliseconds": round(1000 * statistics.median(times[key]), 4)}
    for unit, column in UNITS.items():
        quartiles = [math.nan] * 3
        if unit in times:
            ratios = [a / b for a, b in zip(times[key], times[unit], strict=True)]
            quartiles = statistics.quantiles(ratios, n=4)
        for suffix, value in zip(("_low", "", "_high"), quartiles, strict=True):
            measured[column + suffix] = round(value, 4)
    return measured
