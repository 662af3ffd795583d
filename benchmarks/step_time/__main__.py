"""What a step costs in time, compilation and memory: ``python -m benchmarks.step_time --help``.

Times whole jitted, donated train steps of a network in interleaved pairs and reports the median of
the ratios of the pairs, so that noise of the machine that is slower than a step cancels.

The measures, all for one step: "time", a call of its own, the state passed in and out; "scanned",
within a `lax.scan` over many; "tracing" and "compile", the latter with the former; "memory",
arguments, results and temporary buffers; "peers", PyTorch's SAM and LookSAM against its own SGD,
on the CPU.

budgeted_sam takes a second gradient on one step in eight: ideally 1.125 times SGD, 0.5625 times
SAM. The cost of the `lax.cond` is "sam by policy", which decides at each step, always for it, in
units of "sam", which has none. "tracing" is the time until there is something to compile.
"""

import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro

import arsam_jax
from arsam_jax import sampling
from arsam_jax._convolutions import fast_convolutions
from benchmarks.harness import table
from benchmarks.harness.networks import NETWORKS, NUM_CLASSES, Network

COMPARISONS = (
    # what, in units of, the limit that the project holds itself to
    ("arsam plain step", "sgd", 1.02),
    ("arsam reuse step", "sgd", 1.02),
    ("arsam sampled step", "optax.contrib.sam", 1.02),
    ("sam", "optax.contrib.sam", 1.02),
    ("sam by policy", "sam", None),
    ("optax.contrib.sam", "sgd", None),
    ("sgd and ‖g‖", "sgd", None),  # one pass over the gradient: the least that a link can cost
    ("sgd", "sgd again", None),  # the noise of the method
)
SCANNED = (
    *COMPARISONS,
    ("budgeted_sam", "sgd", None),
    ("budgeted_sam", "optax.contrib.sam", None),
)
# Compilation and memory are in units of both: optax's keeps no metrics, ours is what ARSAM adds to.
SAMS = ("optax.contrib.sam", "sam")
COMPILED = ("arsam sampled step", (1.3, 1.25))  # tracing; tracing and compilation
MEMORY = (
    # what, how many buffers shaped like the parameters it may need beyond SAM
    ("sam", 0),
    ("arsam without reuse", 0),
    ("arsam reuse in bfloat16", 0.5),
    ("arsam sampled step", 1),
)


PERIOD = 8  # steps to one sample of budgeted_sam


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    models: tuple[
        Literal["cnn", "mlp", "transformer", "many_arrays", "resnet18", "vit_s"], ...
    ] = ()
    """Networks. If none is given: the first three on CPU, all of them on an accelerator."""
    batch_size: int = 128
    pairs: int = 60
    """Interleaved pairs of steps of each comparison; 0 leaves them out."""
    scanned_pairs: int = 15
    """Interleaved pairs of scans of each comparison, of 8 steps for peers; 0 leaves them out."""
    scanned_steps: int = 16
    """Steps of a scan, a multiple of 8, which is the period of budgeted_sam."""
    compilations: int = 3
    """Interleaved pairs of compilations; 0 leaves them out."""
    peers: bool = False
    """Also the peers in PyTorch, on the first three networks; `make .venv/peers` installs them."""
    cores: int = 1
    """Cores to pin this process to; 0 leaves it as it is, which suits an accelerator."""
    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = (
        table.RESULTS / "step_time" / "step_time.csv"
    )
    """Rows are appended to this file, each as soon as it is measured."""

    def __post_init__(self):
        if self.scanned_steps < 1 or self.scanned_steps % PERIOD:
            raise SystemExit(f"--scanned-steps must be a positive multiple of {PERIOD}")


class Step(NamedTuple):
    """One method's train step.

    Attributes:
      run: takes one step, in place, and waits for it.
      scan: takes the steps of a scan in one call, in place, and waits for them.
      lower: traces ``run`` anew; returns what can be compiled.
      state: returns (params, batch_stats, opt_state).
    """

    run: Callable[[], None]
    scan: Callable[[], None]
    lower: Callable[[], Any]
    state: Callable[[], Any]


def main(options: Options) -> None:
    if options.cores:  # before jax starts its threads
        available = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, available[-options.cores :])
    peers = import_peers() if options.peers else None
    common = {"cores": options.cores, "batch_size": options.batch_size} | table.provenance()
    is_cpu = jax.default_backend() == "cpu"
    for model in options.models or tuple(NETWORKS)[: 3 if is_cpu else None]:
        steps, params_bytes = make_steps(NETWORKS[model], options.batch_size, options.scanned_steps)
        print(f"\n{model}, batch {options.batch_size}, {options.cores or 'all'} core(s),", end=" ")
        print(f"{common['device']}, {params_bytes / 4:,.0f} parameters")
        print(f"{'':9}{'what':27}{'in units of':19}{'ratio':>8}{'quartiles':>16}{'limit':>7}")
        for row in measure(steps, params_bytes, options):
            report(common | {"model": model} | row, options.csv)
        if peers and model in peers.TWINS:
            others = {"device": "cpu", "versions": peers.VERSIONS, "model": model}
            calls = peers.make_steps(model, options.batch_size)
            pairs = options.scanned_pairs
            for row in time_rows("peers", peers.COMPARISONS, calls, pairs, peers.PERIOD):
                report(common | others | row, options.csv)


def import_peers():
    try:
        from benchmarks.step_time import torch_steps
    except ModuleNotFoundError as error:
        raise SystemExit(f"--peers: {error}. `make .venv/peers` installs what it needs.") from None
    return torch_steps


def report(row: dict[str, Any], path: Path) -> None:
    """Prints a row and appends it to the CSV file."""
    quartiles = f"{row['low_quartile']:.3f}-{row['high_quartile']:.3f}"
    print(
        f"{row['measure']:9}{row['step']:27}{row['unit']:19}"
        f"{row['ratio']:8.3f}{quartiles:>16}{row['limit'] or '':>7}   {row['value']}",
        flush=True,
    )
    table.append_row(path, row)


def measure(steps: dict[str, Step], params_bytes: int, options: Options):
    """Yields the measurements of one model as columns of the CSV file."""
    runs = {name: step.run for name, step in steps.items()}
    scans = {name: step.scan for name, step in steps.items()}
    yield from time_rows("time", COMPARISONS, runs, options.pairs, 1)
    yield from time_rows("scanned", SCANNED, scans, options.scanned_pairs, options.scanned_steps)

    name, limits = COMPILED
    for unit in SAMS:
        yield from compile_rows(steps, name, unit, limits, options)
    peaks = {name: needed_bytes(steps[name].lower().compile()) for name in {*dict(MEMORY), *SAMS}}
    for unit in SAMS:
        for name, buffers in MEMORY:
            if name != unit:
                extra = (peaks[name] - peaks[unit]) / params_bytes
                limit = round(1 + buffers * params_bytes / peaks[unit], 4)
                value = f"{peaks[name]} bytes, {extra:+.2f} × params"
                yield columns("memory", name, unit, limit, [peaks[name] / peaks[unit]], value)


def compile_rows(steps: dict[str, Step], name, unit, limits, options):
    """Yields the columns of tracing, and of tracing and compilation."""

    def trace(name):
        jax.clear_caches()
        return steps[name].lower()

    for kind, limit, make in zip(
        ("tracing", "compile"), limits, (trace, lambda name: trace(name).compile()), strict=True
    ):
        if options.compilations:
            pair = functools.partial(make, name), functools.partial(make, unit)
            ratios, seconds = compare(*pair, options.compilations, warm_up=0)
            yield columns(kind, name, unit, limit, ratios, f"{seconds:.2f} s")


def time_rows(kind, comparisons, calls: dict[str, Callable], pairs: int, steps_per_call: int):
    """Yields the columns of each comparison of calls; nothing where there are no pairs."""
    for name, unit, limit in comparisons if pairs else ():
        warm_up = 3 if steps_per_call == 1 else 1
        ratios, seconds = compare(calls[name], calls[unit], pairs, warm_up)
        value = f"{1000 * seconds / steps_per_call:.3f} ms"
        yield columns(kind, name, unit, limit, ratios, value)


def columns(kind, name, unit, limit, ratios, value) -> dict[str, Any]:
    low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "measure": kind,
        "step": name,
        "unit": unit,
        "ratio": round(median, 4),
        "low_quartile": round(low, 4),
        "high_quartile": round(high, 4),
        "limit": limit,
        "value": value,
        "repetitions": len(ratios),
    }


def needed_bytes(compiled) -> int:
    """Arguments, results that do not take the place of arguments, and temporary buffers."""
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes


def compare(
    function: Callable[[], Any], unit: Callable[[], Any], pairs: int, warm_up: int
) -> tuple[list[float], float]:
    """The ratios of ``pairs`` pairs and the median time of ``function`` in seconds.

    Which of the two goes first alternates, so that neither is always the one with a warm cache.
    """

    def seconds(function):
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    for _ in range(warm_up):
        function()
        unit()
    ratios, times = [], []
    for i in range(pairs):
        if i % 2:
            a, b = seconds(function), seconds(unit)
        else:
            b, a = seconds(unit), seconds(function)
        ratios.append(a / b)
        times.append(a)
    return ratios, statistics.median(times)


def make_steps(
    network: Network, batch_size: int, scanned_steps: int, names: Collection[str] = ()
) -> tuple[dict[str, Step], int]:
    """The steps to compare by name, those in ``names`` if any are, and the parameters' bytes."""
    module, image = network
    key = jax.random.key(0)
    images = jax.random.normal(key, (batch_size, *image))
    labels = jax.random.randint(key, (batch_size,), 0, NUM_CLASSES)
    variables = jax.jit(module.init)(key, images)

    def gradient(params, batch_stats):
        def loss_fn(params):
            logits, changed = module.apply(
                {"params": params, "batch_stats": batch_stats}, images, mutable=["batch_stats"]
            )
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, changed.get("batch_stats", {})

        (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        return grads, batch_stats, loss

    def make_step(tx, prepare):
        def train_step(state):
            params, batch_stats, opt_state = state
            grads, new_batch_stats, loss = gradient(params, batch_stats)
            updates, opt_state = tx.update(
                grads,
                opt_state,
                params,
                grad_fn=lambda params, *_: gradient(params, batch_stats)[0],
            )
            return (optax.apply_updates(params, updates), new_batch_stats, opt_state), loss

        def scanned(state):
            step = fast_convolutions(train_step)
            return jax.lax.scan(lambda state, _: step(state), state, length=scanned_steps)

        def jit(function):
            return jax.jit(function, donate_argnums=0)

        params, batch_stats = jax.tree.map(
            jnp.copy, (variables["params"], variables.get("batch_stats", {}))
        )
        state = params, batch_stats, prepare(tx.init(params))

        def call(function):
            nonlocal state
            state, _ = jax.block_until_ready(function(state))

        return Step(
            run=functools.partial(call, jit(train_step)),
            scan=functools.partial(call, jit(scanned)),
            lower=lambda: jit(train_step).lower(state),
            state=lambda: state,
        )

    steps = {
        name: make_step(tx, just_sampled if name == "arsam reuse step" else lambda state: state)
        for name, tx in make_optimizers().items()
        if not names or name in names
    }
    return steps, sum(x.nbytes for x in jax.tree.leaves(variables["params"]))


def make_optimizers() -> dict[str, optax.GradientTransformationExtraArgs]:
    """What takes the steps, by their names."""
    learning_rate, rho = 1e-3, 0.05
    sgd = optax.sgd(learning_rate, momentum=0.9)
    opaque_sam = optax.contrib.sam(
        sgd, optax.chain(optax.contrib.normalize(), optax.sgd(rho)), opaque_mode=True
    )

    def over_sgd(link):
        return optax.with_extra_args_support(optax.chain(link, sgd))

    def arsam(samples, **kwargs):
        limits = {"initial_samples": samples, "min_samples": samples}
        return over_sgd(arsam_jax.arsam(rho, 0.4, **limits, **kwargs))

    return {
        "sgd": optax.with_extra_args_support(sgd),
        "sgd again": optax.with_extra_args_support(sgd),
        "sgd and ‖g‖": over_sgd(gradient_norm()),
        "optax.contrib.sam": opaque_sam,
        "sam": over_sgd(arsam_jax.sam(rho)),
        "sam by policy": over_sgd(arsam_jax.sharpness_aware(rho, sampling=sampling.budgeted(1.0))),
        "budgeted_sam": over_sgd(arsam_jax.budgeted_sam(rho, share=1 / PERIOD)),
        "arsam sampled step": arsam(samples=50),
        "arsam reuse step": arsam(samples=0, reuse_steps=None),
        "arsam plain step": arsam(samples=0),
        "arsam without reuse": arsam(samples=50, reuse_steps=0),
        "arsam reuse in bfloat16": arsam(samples=50, reuse_dtype=jnp.bfloat16),
    }


def just_sampled(opt_state):
    return (opt_state[0]._replace(age=jnp.zeros([], jnp.int32)), *opt_state[1:])


def gradient_norm():
    """Leaves the gradient as it is and keeps ‖g‖."""
    return optax.GradientTransformation(
        lambda params: jnp.zeros([], jnp.float32),
        lambda updates, state, params=None: (updates, optax.tree.norm(updates)),
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
