"""One training of a workload: a function of method, price, seed, radius, rate and weight decay.

The data subset, the label noise, the initialisation and the order all follow from the seed.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import arsam_jax
from arsam_jax import measure, microbatches
from arsam_jax._convolutions import fast_convolutions
from benchmarks.harness.workloads import Data, Setting, Term, Workload, make_data

SWA_START = 0.75  # of the run
MEASURED_EXAMPLES = 256  # of the training set: curvature and sharpness are taken on these

MakeLink = Callable[..., optax.GradientTransformationExtraArgs]


class Whole(NamedTuple):
    """What stands for a ``MakeLink`` where a link is not enough: it makes the whole optimizer.

    Attributes:
      make: ``(rho, share, total_steps, seed, *, base, schedule, workload) -> optimizer``, from the
        base optimizer and its learning rates.
    """

    make: Callable[..., optax.GradientTransformationExtraArgs]


class Result(NamedTuple):
    """What one run reports. The accuracy is the workload's score, in %."""

    accuracy: float
    sampled_share: float
    train_loss: float
    top_hessian_eigenvalue: float
    sharpness: float
    seconds_per_step: float
    peak_bytes: int
    steps: int


def train(
    workload: Workload,
    make_link: MakeLink | Whole,
    share: float,
    setting: Setting,
    seed: int,
    held_out: Literal["validation", "test"],
) -> Result:
    """Trains once and evaluates on the held-out examples.

    What depends on neither setting nor seed is compiled once: runs of one method and share should
    follow one another.
    """
    data = make_data(workload, seed, held_out)
    compiled = _compile(workload, make_link, share, *map(_shape_of, (data.x, data.labels)))
    order = _order(workload, len(data.x), seed)
    hyper = Setting(*(jnp.float32(value) for value in setting))
    run_seed = jnp.uint32(seed)
    x, labels = jnp.asarray(data.x), jnp.asarray(data.labels)
    state = compiled.init(initial(workload, seed, data), run_seed, hyper)
    jax.block_until_ready((state, x, labels))
    start = time.perf_counter()
    state, losses = jax.block_until_ready(
        compiled.run(state, run_seed, hyper, x, labels, jnp.asarray(order))
    )
    seconds = time.perf_counter() - start
    variables, opt_state = state.variables, state.opt_state
    scored = variables if state.average is None else state.average
    if workload.swa is not None:
        last_epoch = jnp.asarray(order[-len(order) // workload.epochs :])
        scored = _with_statistics(workload, scored, x, last_epoch)
    score = _score(workload, scored, data.held_out_x, data.held_out_labels)
    eigenvalue = sharpness = float("nan")
    if held_out == "test":
        part = slice(MEASURED_EXAMPLES)
        eigenvalue, sharpness = _curvature(
            workload, variables, x[part], labels[part], workload.setting.rho
        )
    steps = len(order)
    return Result(
        accuracy=100 * float(score),
        sampled_share=int(arsam_jax.get_metrics(opt_state).num_sampled) / steps,
        train_loss=float(losses[-steps // workload.epochs :].mean()),
        top_hessian_eigenvalue=float(eigenvalue),
        sharpness=float(sharpness),
        seconds_per_step=seconds / steps,
        peak_bytes=compiled.peak_bytes,
        steps=steps,
    )


def _order(workload: Workload, num_train: int, seed: int) -> np.ndarray:
    """The examples of each step, (steps, batch)."""
    rng = np.random.default_rng([seed, 2])
    size = workload.batch_size
    full = num_train // size * size
    orders = (rng.permutation(num_train)[:full].reshape(-1, size) for _ in range(workload.epochs))
    return np.concatenate([*orders]).astype(np.int32)


class _State(NamedTuple):
    variables: Any  # (params, batch_stats)
    opt_state: Any
    average: Any  # of variables, or None
    memory: Any  # of the term of the loss, or ()


class _Compiled(NamedTuple):
    init: Callable[..., Any]
    run: Callable[..., Any]
    peak_bytes: int


def _shape_of(x: np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


@functools.lru_cache(maxsize=1)
def _compile(
    workload: Workload,
    make_link: MakeLink | Whole,
    share: float,
    x: jax.ShapeDtypeStruct,
    labels: jax.ShapeDtypeStruct,
) -> _Compiled:
    """A whole run as one ``lax.scan`` over its steps, the setting and the seed being arguments."""
    num_train = x.shape[0]
    init, run = _training(workload, make_link, share, num_train)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    seed, setting = jax.ShapeDtypeStruct((), jnp.uint32), Setting(*[scalar] * 3)
    order = jax.ShapeDtypeStruct((num_steps(workload, num_train), workload.batch_size), jnp.int32)
    variables = jax.eval_shape(functools.partial(_init, workload.network), 0, x)
    state = jax.eval_shape(init, variables, seed, setting)
    compiled = jax.jit(run, donate_argnums=0).lower(state, seed, setting, x, labels, order)
    compiled = compiled.compile()
    memory: Any = compiled.memory_analysis()
    data_bytes = sum(a.size * a.dtype.itemsize for a in (x, labels, order))
    peak_bytes = memory.temp_size_in_bytes + memory.argument_size_in_bytes - data_bytes
    return _Compiled(init, compiled, peak_bytes)


def initial(workload: Workload, seed: int, data: Data) -> Any:
    """(params, batch_stats) where a training starts."""
    if workload.pretraining is None:
        return _init(workload.network, seed, data.x)
    return _pretrained(workload.pretraining, seed)


@functools.lru_cache(maxsize=32)
def _pretrained(workload: Workload, seed: int) -> Any:
    """(params, batch_stats) after a training with the base optimizer."""
    data = make_data(workload, seed, "validation")
    steps = num_steps(workload, len(data.x))
    setting = workload.setting._replace(rho=0.0)
    return next(
        snapshots(workload, lambda rho, *_: arsam_jax.sam(rho), setting, seed, data, [steps])
    )


@functools.partial(jax.jit, static_argnums=0)
def _init(network, seed, x):
    variables = network.init(jax.random.key(seed), x[:2], train=True)
    return variables["params"], variables.get("batch_stats", {})


def num_steps(workload: Workload, num_train: int) -> int:
    """Of a whole training on so many examples."""
    return workload.epochs * (num_train // workload.batch_size)


def _training(workload: Workload, make_link: MakeLink | Whole, share: float, num_train: int):
    """``init(variables, seed, setting)``, ``run(state, seed, setting, x, labels, order, first=0)``.

    ``run`` takes the steps from ``first`` on, whose examples are in ``order``, (steps, batch), of a
    whole training.
    """
    steps, term = num_steps(workload, num_train), workload.term

    def make_optimizer(seed, setting):
        schedule = _schedule(workload, setting.learning_rate, steps)
        knobs = setting.rho, share, steps, seed
        if workload.base == "adamw":
            base = [optax.adamw(schedule, weight_decay=setting.weight_decay)]
        else:
            decay = optax.add_decayed_weights(setting.weight_decay)
            base = [decay, optax.sgd(schedule, momentum=0.9)]
        if isinstance(make_link, Whole):
            base = optax.chain(*base)
            return make_link.make(*knobs, base=base, schedule=schedule, workload=workload)
        return optax.chain(make_link(*knobs), *base)

    @jax.jit
    def init(variables, seed, setting):
        params = variables[0]
        average = variables if workload.averaged or workload.swa is not None else None
        memory = term.init(params, num_train) if term else ()
        return _State(variables, make_optimizer(seed, setting).init(params), average, memory)

    def run(state, seed, setting, x, labels, order, first=0):
        tx = make_optimizer(seed, setting)

        def batch_of(number, indices):
            if workload.augment is None:
                return x[indices], labels[indices]
            key = jax.random.fold_in(jax.random.key(seed), number)
            return workload.augment(key, x[indices]), labels[indices]

        @fast_convolutions
        def step(carry):
            (state, (number, indices, indices_before)) = carry
            (params, statistics), opt_state, average, memory = state
            batch = batch_of(number, indices)

            def losses_of(params, batch):
                return example_losses(workload, params, statistics, batch)

            def grad_fn_of(batch):
                return jax.grad(lambda params: losses_of(params, batch)[0].mean())

            def loss_fn(params):
                losses, changed = losses_of(params, batch)
                return losses.mean(), changed

            if term is not None:
                grads, loss, new_statistics, memory = _with_term(
                    workload, term, memory, params, statistics, number, indices, batch
                )
                more = {}
            elif workload.num_microbatches == 1:
                (loss, new_statistics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
                more = {}
            else:
                take = microbatches.value_and_grad(
                    losses_of, workload.num_microbatches, has_aux=True
                )
                (loss, moved), grads, of_each = take(params, batch)
                new_statistics = jax.tree.map(lambda x: x.mean(0), moved)
                more = {"microbatch_grads": of_each}
            updates, opt_state = tx.update(
                grads,
                opt_state,
                params,
                grad_fn=grad_fn_of(batch),
                previous_grad_fn=grad_fn_of(batch_of(number - 1, indices_before)),
                example_loss_fn=lambda params, b: losses_of(params, b)[0],
                batch=batch,
                example_index=indices,
                **more,
            )
            variables = optax.apply_updates(params, updates), new_statistics
            if average is not None:
                part = _part_of_average(workload, number, steps)
                average = optax.incremental_update(variables, average, part)
            return _State(variables, opt_state, average, memory), loss

        before = jnp.concatenate([order[:1], order[:-1]])
        numbered = first + jnp.arange(len(order)), order, before
        return jax.lax.scan(lambda state, which: step((state, which)), state, numbered)

    return init, run


def _with_term(workload, term: Term, memory, params, statistics, number, indices, batch):
    """The gradient with the term, the loss without it, moved statistics and the next memory."""
    x, labels = batch
    epoch = number // (workload.num_train // workload.batch_size)

    def outputs_of(params):
        return _outputs(workload, params, statistics, x)[0]

    def loss_fn(params):
        outputs, changed = _outputs(workload, params, statistics, x)
        loss = workload.objective.losses(outputs, labels).mean()
        added = term.loss(memory, indices, epoch, outputs, outputs_of)
        return loss + added, (loss, changed, outputs)

    grads, (loss, changed, outputs) = jax.grad(loss_fn, has_aux=True)(params)
    return grads, loss, changed, term.next(memory, indices, epoch, outputs, params)


def _stable(learning_rate, steps):
    warm_up, fall = max(1, steps // 10), max(1, steps // 5)
    parts = [
        optax.linear_schedule(0.0, learning_rate, warm_up),
        optax.linear_schedule(learning_rate, 0.0, fall, transition_begin=steps - fall - warm_up),
    ]
    return optax.join_schedules(parts, [warm_up])


def _of_swa(learning_rate, steps, part):
    """As in the authors' code (github.com/timgaripov/swa): falls from half of the way to 0.9."""
    start = SWA_START * steps
    fall = optax.linear_schedule(1.0, part, round(0.4 * start), round(0.5 * start))
    return lambda step: learning_rate * fall(step)


_SCHEDULES = {"cosine": optax.cosine_decay_schedule, "stable": _stable}


def _schedule(workload: Workload, learning_rate, steps: int):
    if workload.swa:
        return _of_swa(learning_rate, steps, workload.swa)
    return _SCHEDULES[workload.schedule](learning_rate, steps)


def _part_of_average(workload: Workload, number, steps: int):
    """How much of the average the step's result becomes."""
    if workload.swa is None:
        return 1 / max(1, workload.averaged * steps)
    of_epoch = steps // workload.epochs
    epochs, rest = jnp.divmod(number + 1, of_epoch)
    taken = epochs - round(SWA_START * workload.epochs) + 1
    return jnp.where((rest == 0) & (taken > 0), 1 / jnp.maximum(taken, 1), 0.0)


@functools.partial(jax.jit, static_argnums=0)
def _with_statistics(workload, variables, x, order):
    """The same with running statistics that have gone over these batches at these parameters."""
    params, statistics = variables

    def step(statistics, indices):
        return _outputs(workload, params, statistics, x[indices])[1], None

    return params, jax.lax.scan(step, statistics, order)[0]


def snapshots(
    workload: Workload,
    make_link: MakeLink | Whole,
    setting: Setting,
    seed: int,
    data: Data,
    steps: Sequence[int],
) -> Iterator[Any]:
    """(params, batch_stats) of a training after each of these numbers of steps."""
    x, labels = jnp.asarray(data.x), jnp.asarray(data.labels)
    order = jnp.asarray(_order(workload, len(x), seed))
    init, run = _training(workload, make_link, 1, len(x))
    hyper, run_seed = Setting(*(jnp.float32(value) for value in setting)), jnp.uint32(seed)
    state = init(initial(workload, seed, data), run_seed, hyper)
    done, run = 0, jax.jit(run)
    for step in steps:
        state, _ = run(state, run_seed, hyper, x, labels, order[done:step], done)
        done = step
        yield state.variables


def example_losses(workload: Workload, params, statistics, batch):
    """One loss for each example, with the statistics of the batch, and the moved running ones."""
    x, labels = batch
    outputs, changed = _outputs(workload, params, statistics, x)
    return workload.objective.losses(outputs, labels), changed


def _outputs(workload, params, statistics, x):
    """Of a network that trains, and the moved running statistics."""
    variables = {"params": params, "batch_stats": statistics}
    outputs, changed = workload.network.apply(variables, x, train=True, mutable=["batch_stats"])
    return outputs, changed.get("batch_stats", {})


@functools.partial(jax.jit, static_argnums=0)
def _score(workload, variables, x, labels):
    params, statistics = variables
    outputs = workload.network.apply({"params": params, "batch_stats": statistics}, x, train=False)
    return workload.objective.score(outputs, labels)


@functools.partial(jax.jit, static_argnums=0)
def _curvature(workload, variables, x, labels, rho):
    """Top Hessian eigenvalue and ρ-sharpness of the training loss, statistics of the batch."""
    params, statistics = variables

    def loss_fn(params):
        return example_losses(workload, params, statistics, (x, labels))[0].mean()

    eigenvalue = measure.top_hessian_eigenvalue(loss_fn, params, num_iterations=15)
    return eigenvalue, measure.sharpness(loss_fn, params, rho)
