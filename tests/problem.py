"""A small regression network, shared by all tests of a whole training step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from arsam_jax import microbatches

BATCH = 16


def make_params(dtype=jnp.float32):
    """A mixed tree: a matrix, a vector, a scalar, an empty container and a None leaf."""
    rng = np.random.default_rng(0)
    return {
        "kernel": jnp.asarray(rng.normal(size=(5, 4)), dtype),
        "bias": jnp.asarray(rng.normal(size=(4,)), dtype),
        "scale": jnp.asarray(0.7, dtype),
        "empty": {},
        "none": None,
    }


@functools.cache
def make_batch(step):
    rng = np.random.default_rng([7, step])
    x = rng.normal(size=(BATCH, 5))
    y = np.sin(x.sum(1)) + 0.1 * rng.normal(size=BATCH)
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def example_loss_fn(params, batch):
    x, y = batch
    dtype = params["kernel"].dtype
    x, y, bias, scale = (v.astype(dtype) for v in (x, y, params["bias"], params["scale"]))
    hidden = jnp.tanh(x @ params["kernel"] + jnp.broadcast_to(bias, (x.shape[0], 4)))
    return jnp.square(scale * hidden.sum(1) - y)


def loss_fn(params, batch):
    return example_loss_fn(params, batch).mean()


def example_index(batch, axis_name=None):
    """The positions of the examples in the data set, the same on every step."""
    rows = jnp.arange(len(batch[0]), dtype=jnp.int32)
    return rows if axis_name is None else rows + jax.lax.axis_index(axis_name) * len(rows)


def make_step(tx, on_gradient=None, axis_name=None, measure=False):
    """Returns ``(params, opt_state, batch) -> (params, opt_state)``, with every extra argument.

    Args:
      tx: the optimizer.
      on_gradient: called on the host each time ``grad_fn`` is executed.
      axis_name: the mapped axis over which gradients are averaged.
      measure: whether all metrics are measured.
    """

    def step(params, opt_state, batch):
        def plain_grad_fn(params):
            grads = jax.grad(loss_fn)(params, batch)
            return grads if axis_name is None else jax.lax.pmean(grads, axis_name)

        def grad_fn(params):
            if on_gradient is not None:
                jax.debug.callback(on_gradient)
            return plain_grad_fn(params)

        updates, opt_state = tx.update(
            plain_grad_fn(params),
            opt_state,
            params,
            grad_fn=grad_fn,
            previous_grad_fn=grad_fn,
            direction=params,
            example_loss_fn=example_loss_fn,
            batch=batch,
            example_index=example_index(batch, axis_name),
            axis_name=axis_name,
            measure=measure,
        )
        return optax.apply_updates(params, updates), opt_state

    return step


def stack(trees):
    """Stacks the leaves of several trees along a new first axis."""
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def pick(tree, i):
    """Element ``i`` of every leaf of a stacked tree."""
    return jax.tree.map(lambda x: x[i], tree)


def train(tx, steps, params=None, first=0, opt_state=None, step=None):
    """Trains and returns ``(params, opt_state)``."""
    params = make_params() if params is None else params
    opt_state = tx.init(params) if opt_state is None else opt_state
    step = jax.jit(make_step(tx)) if step is None else step
    for i in range(first, first + steps):
        params, opt_state = step(params, opt_state, make_batch(i))
    return params, opt_state


def train_sam_of_optax(base, rho, steps, params, **kwargs):
    """Trains with ``optax.contrib.sam`` in its opaque mode and returns the parameters."""
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(rho))
    tx = optax.contrib.sam(base, adversary, opaque_mode=True, **kwargs)
    state = tx.init(params)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for i in range(steps):
            batch = make_batch(i)

            def grad_fn(params, _, batch=batch):
                return jax.grad(loss_fn)(params, batch)

            updates, state = tx.update(grad_fn(params, 0), state, params, grad_fn=grad_fn)
            params = optax.apply_updates(params, updates)
    return params


def count_gradients(tx, steps, make=make_step):
    """Trains; returns the executed gradients of each step, with the clean one, and the state."""
    executed, counts = [], []
    step = jax.jit(make(tx, on_gradient=lambda: executed.append(1)))
    params = make_params()
    opt_state = tx.init(params)
    for i in range(steps):
        executed.clear()
        params, opt_state = step(params, opt_state, make_batch(i))
        jax.block_until_ready(params)
        jax.effects_barrier()
        counts.append(1 + len(executed))
    return counts, opt_state


def matrix_products(tx, width=64, num_microbatches=None, **kwargs):
    """Counts the matrix products in the compiled step of a network with two layers.

    With micro-batches only those of one micro-batch are counted, because they run in a loop.
    """
    params = {"in": jnp.ones((width, width)), "out": jnp.ones((width, width))}

    def example_loss_fn(params, batch):
        return jnp.sum(jnp.tanh(jnp.tanh(batch @ params["in"]) @ params["out"]), axis=1)

    def step(params, state, batch):
        def grad_fn(params):
            return jax.grad(lambda p: example_loss_fn(p, batch).mean())(params)

        if num_microbatches is None:
            grads, more = grad_fn(params), {}
        else:
            take = microbatches.value_and_grad(example_loss_fn, num_microbatches)
            _, grads, of_each = take(params, batch)
            more = {"microbatch_grads": of_each}
        return tx.update(
            grads,
            state,
            params,
            grad_fn=grad_fn,
            **more,
            previous_grad_fn=grad_fn,
            direction=params,
            example_loss_fn=example_loss_fn,
            batch=batch,
            example_index=np.arange(128),
            **kwargs,
        )

    lowered = jax.jit(step).lower(params, tx.init(params), jnp.ones((128, width)))
    return str(lowered.compile().as_text()).count(" dot(")


def update_with(tx, **extra_args):
    """One update outside ``jit`` with the given extra arguments."""
    params = make_params()
    extra_args = {"example_index": np.arange(16), **extra_args}
    grads = jax.grad(loss_fn)(params, make_batch(0))
    return tx.update(grads, tx.init(params), params, grad_fn=lambda p: grads, **extra_args)
