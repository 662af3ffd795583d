"""Least squares with known gradients of single examples: l_i(w) = (a_i·w − b_i)² / 2.

In NumPy on flat vectors for ``tests.reference``, and in JAX on a tree of a matrix and a vector.
"""

import jax
import jax.numpy as jnp
import numpy as np

SIZE, BATCH, STEPS, EXAMPLES = 8, 6, 40, 20


def split(flat):
    """A vector as a tree of a matrix and a vector."""
    return {"a": flat[:6].reshape(3, 2), "b": flat[6:]}


def join(tree):
    return np.concatenate([np.ravel(tree["a"]), np.ravel(tree["b"])])


def make_params(flat):
    return jax.tree.map(jnp.asarray, split(flat))


def draw_batch(step, size=BATCH):
    rng = np.random.default_rng([11, step])
    return rng.normal(size=(size, SIZE)), rng.normal(size=size)


def draw_index(step):
    return np.random.default_rng([13, step]).permutation(EXAMPLES)[:BATCH]


def example_losses(w, batch):
    return (batch[0] @ w - batch[1]) ** 2 / 2


def example_gradients(w, batch):
    return (batch[0] @ w - batch[1])[:, None] * batch[0]


def gradient(w, batch):
    return example_gradients(w, batch).mean(0)


def example_loss_fn(params, batch):
    flat = jnp.concatenate([params["a"].reshape(-1), params["b"]])
    return jnp.square(batch[0] @ flat - batch[1]) / 2


def grad_fn_of(batch):
    return lambda params: jax.grad(lambda p: example_loss_fn(p, batch).mean())(params)


def assert_follows(tx, reference, steps=STEPS, on_state=None, extra_args=None):
    """Compares the updates and the decisions of ``tx`` with those of ``tests.reference``.

    Args:
      tx: the link.
      reference: ``(step, w, batch, sampled) -> (updates, whether the step is to be sampled)``.
      steps: of the run, which goes on from what ``tx`` returns.
      on_state: called with the step and the state after it.
      extra_args: of ``tx.update``, beside those that every method takes.
    """

    @jax.jit
    def update(params, state, batch, previous, index):
        extra = {"example_loss_fn": example_loss_fn, "batch": batch, "example_index": index}
        extra |= {"previous_grad_fn": grad_fn_of(previous), "direction": params}
        extra |= extra_args or {}
        grad_fn = grad_fn_of(batch)
        return tx.update(grad_fn(params), state, params, grad_fn=grad_fn, **extra)

    w = np.random.default_rng(0).normal(size=SIZE)
    state = tx.init(make_params(w))
    for step in range(steps):
        batch, before = draw_batch(step), draw_batch(max(step - 1, 0))
        updates, state = update(split(w), state, batch, before, draw_index(step))
        sampled = bool(state.metrics.sampled)
        expected, is_due = reference(step, w, batch, sampled)
        assert sampled == is_due
        np.testing.assert_allclose(join(updates), expected, rtol=1e-9, atol=1e-12)
        if on_state is not None:
            on_state(step, state)
        w = w - 0.02 * join(updates)
    return state
