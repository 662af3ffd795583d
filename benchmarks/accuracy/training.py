"""One training run of a task, as a function of method, hyperparameter, setting and seed.

The data subset, the label noise, the initial values and the order of the examples follow from the
seed.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import arsam_jax
from arsam_jax import fast_convolutions, microbatches
from benchmarks.accuracy.methods import METHODS, Context
from benchmarks.accuracy.tasks import Data, Setting, Task, make_data


class Result(NamedTuple):
    """What a run reports. The loss is the mean of the last epoch."""

    scores: list[float]  # in %, after each of the last epochs
    sampled_share: float
    train_loss: float


class _State(NamedTuple):
    variables: Any  # (params, batch_stats)
    opt_state: Any


def train(
    task: Task,
    method: str,
    value: float,
    setting: Setting,
    seed: int,
    held_out: Literal["validation", "test"],
    evaluations: int = 1,
) -> Result:
    """Trains once, with this value of the method's hyperparameter, and evaluates.

    Args:
      evaluations: how many of the last epochs are evaluated. If it is above 1, the epochs are
        calls of one compiled program, otherwise the whole run is a single call.
    """
    task = METHODS[method].change(task, value)
    data = make_data(task, seed, held_out)
    order = _order(task, len(data.x), seed)
    x, labels = jnp.asarray(data.x), jnp.asarray(data.labels)
    program = _program(task, method, value)
    arguments = jnp.uint32(seed), Setting(*(jnp.float32(x) for x in setting)), len(order)
    state = program.init(_initial(task, seed, data), *arguments)
    scores, losses, first = [], jnp.zeros(1), 0
    chunks = np.split(order, task.epochs if evaluations > 1 else 1)
    for number, chunk in enumerate(chunks, 1):
        state, losses = program.run(state, *arguments, x, labels, chunk, first)
        first += len(chunk)
        if number > len(chunks) - evaluations:
            held_out_score = _score(task, state.variables, data.held_out_x, data.held_out_labels)
            scores.append(100 * float(held_out_score))
    num_sampled = int(arsam_jax.get_metrics(state.opt_state).num_sampled)
    return Result(
        scores=scores,
        sampled_share=num_sampled / len(order),
        train_loss=float(losses[-len(order) // task.epochs :].mean()),
    )


def _order(task: Task, num_train: int, seed: int) -> np.ndarray:
    """The examples of each step, (steps, batch)."""
    rng = np.random.default_rng([seed, 2])
    size = task.batch_size
    full = num_train // size * size
    orders = (rng.permutation(num_train)[:full].reshape(-1, size) for _ in range(task.epochs))
    return np.concatenate([*orders]).astype(np.int32)


def _initial(task: Task, seed: int, data: Data) -> Any:
    """(params, batch_stats) before the first step."""
    if task.pretraining is None:
        return _init(task.network, seed, data.x)
    return _pretrained(task.pretraining, seed)


@functools.lru_cache(maxsize=32)
def _pretrained(task: Task, seed: int) -> Any:
    data = make_data(task, seed, "validation")
    order = _order(task, len(data.x), seed)
    program = _program(task, "base", 0)
    arguments = jnp.uint32(seed), Setting(*(jnp.float32(x) for x in task.setting)), len(order)
    state = program.init(_initial(task, seed, data), *arguments)
    return program.run(state, *arguments, data.x, data.labels, order, 0)[0].variables


@functools.partial(jax.jit, static_argnums=0)
def _init(network, seed, x):
    variables = network.init(jax.random.key(seed), x[:2], train=True)
    return variables["params"], variables.get("batch_stats", {})


class _Program(NamedTuple):
    """Compiled functions ``init(variables, ...)`` and ``run(state, ..., x, labels, order, first)``.

    Both take the seed, the setting and the number of steps of the whole run. ``run`` takes the
    steps from ``first`` on whose examples are in ``order``.
    """

    init: Any
    run: Any


@functools.lru_cache(maxsize=8)  # some methods of a task, and its pretraining
def _program(task: Task, method: str, value: float) -> _Program:
    """Setting and seed are arguments, so runs that differ in these share one compilation."""

    def make_optimizer(seed, setting, steps):
        schedule = _schedule(task, setting.learning_rate, steps)
        if task.base == "adamw":
            base = optax.adamw(schedule, weight_decay=setting.weight_decay)
        else:
            decay = optax.add_decayed_weights(setting.weight_decay)
            base = optax.chain(decay, optax.sgd(schedule, momentum=0.9))
        context = Context(setting.rho, value, steps, seed, base, schedule, task)
        return METHODS[method].make(context)

    @functools.partial(jax.jit, static_argnames="steps")
    def init(variables, seed, setting, steps):
        opt_state = make_optimizer(seed, setting, steps).init(variables[0])
        return _State(variables, opt_state)

    @functools.partial(jax.jit, static_argnames="steps")
    def run(state, seed, setting, steps, x, labels, order, first):
        tx: Any = make_optimizer(seed, setting, steps)

        def batch_of(number, indices):
            if task.augment is None:
                return x[indices], labels[indices]
            key = jax.random.fold_in(jax.random.key(seed), number)
            return task.augment(key, x[indices]), labels[indices]

        @fast_convolutions
        def step(carry):
            state, (number, indices, previous_indices) = carry
            (params, statistics), opt_state = state
            batch = batch_of(number, indices)

            def losses_of(params, batch):
                outputs, changed = _outputs(task, params, statistics, batch[0])
                return task.objective.losses(outputs, batch[1]), changed

            def grad_fn_of(batch):
                return jax.grad(lambda params: losses_of(params, batch)[0].mean())

            def loss_fn(params):
                losses, changed = losses_of(params, batch)
                return losses.mean(), changed

            more = {}
            if task.num_microbatches == 1:
                (loss, statistics_), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
            else:
                take = microbatches.value_and_grad(losses_of, task.num_microbatches, has_aux=True)
                (loss, moved), grads, of_each = take(params, batch)
                statistics_ = jax.tree.map(lambda x: x.mean(0), moved)
                more = {"microbatch_grads": of_each}
            updates, opt_state = tx.update(
                grads,
                opt_state,
                params,
                grad_fn=grad_fn_of(batch),
                previous_grad_fn=grad_fn_of(batch_of(number - 1, previous_indices)),
                example_loss_fn=lambda params, b: losses_of(params, b)[0],
                batch=batch,
                example_index=indices,
                **more,
            )
            variables = optax.apply_updates(params, updates), statistics_
            return _State(variables, opt_state), loss

        previous = jnp.concatenate([order[:1], order[:-1]])
        numbered = first + jnp.arange(len(order)), order, previous
        return jax.lax.scan(lambda state, which: step((state, which)), state, numbered)

    return _Program(init, run)


def _schedule(task: Task, learning_rate, steps: int):
    if task.schedule == "cosine":
        return optax.cosine_decay_schedule(learning_rate, steps)
    # "stable": warms up over the first tenth and falls linearly to 0 over the last fifth
    warm_up, fall = max(1, steps // 10), max(1, steps // 5)
    parts = [
        optax.linear_schedule(0.0, learning_rate, warm_up),
        optax.linear_schedule(learning_rate, 0.0, fall, transition_begin=steps - fall - warm_up),
    ]
    return optax.join_schedules(parts, [warm_up])


def _outputs(task, params, statistics, x):
    """The outputs in training mode, and the updated running statistics."""
    variables = {"params": params, "batch_stats": statistics}
    outputs, changed = task.network.apply(variables, x, train=True, mutable=["batch_stats"])
    return outputs, changed.get("batch_stats", {})


@functools.partial(jax.jit, static_argnums=0)
def _score(task, variables, x, labels):
    params, statistics = variables
    outputs = task.network.apply({"params": params, "batch_stats": statistics}, x, train=False)
    return task.objective.score(outputs, labels)
