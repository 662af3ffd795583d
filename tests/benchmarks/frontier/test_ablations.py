"""``budgeted_sam`` with one part replaced, at the same price."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arsam_jax
from benchmarks.frontier.ablations import ABLATIONS


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_cost_what_they_say(name):
    """One step in eight, or as many as its price buys; at random within some deviation."""
    method, steps = ABLATIONS[name], 256
    (share,) = method.shares
    tx = method.make(0.1, share, steps, 0)

    def example_loss(params, batch):
        return jnp.sum(jnp.square(batch @ params["w"] - params["b"]), axis=-1)

    def step(carry, batch):
        params, state = carry
        grad_fn = jax.grad(lambda params: example_loss(params, batch).mean())
        updates, state = tx.update(
            grad_fn(params),
            state,
            params,
            grad_fn=grad_fn,
            example_loss_fn=example_loss,
            batch=batch,
        )
        params = jax.tree.map(lambda w, u: w - 0.01 * u, params, updates)
        return (params, state), arsam_jax.get_metrics(state).sampled

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
        batches = np.random.default_rng(0).normal(size=(steps, 8, 3)).astype(np.float32)
        (params, _), sampled = jax.lax.scan(step, (params, tx.init(params)), batches)
    cost = method.cost(float(sampled.mean()), share)
    assert cost == pytest.approx(1 + share, abs=0.045 if name == "when: at random" else 0.008)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
