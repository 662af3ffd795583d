"""Sampling policies that follow gradient norms or count the steps of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arsam_jax
from arsam_jax import sampling
from tests.problem import loss_fn, make_batch, make_params

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("huge", [1e20, np.inf, np.nan])
def test_one_huge_gradient_does_not_end_a_policy_that_follows_gradient_norms(huge):
    policy = sampling.gradient_norm_gate(100)
    norms = np.exp(0.3 * np.random.default_rng(0).normal(size=100)).astype(np.float32)

    def decisions(norms):
        state, found = policy.init(), []
        for step, norm in enumerate(norms):
            sampled, state = policy.decide(state, jnp.int32(step), jnp.asarray(norm))
            found.append(bool(sampled))
        return found

    usual = decisions(norms)
    norms[20] = huge
    after = slice(60, None)
    assert decisions(norms)[after].count(True) == pytest.approx(usual[after].count(True), abs=2)


def test_a_norm_policy_follows_a_scale_that_stays():
    norms = np.exp(0.3 * np.random.default_rng(0).normal(size=200)).astype(np.float32)
    norms[:20] *= 1e-12
    policy = sampling.gradient_norm_gate(200)

    def step(state, seen):
        sampled, state = policy.decide(state, *seen)
        return state, sampled

    _, sampled = jax.lax.scan(step, policy.init(), (jnp.arange(200, dtype=jnp.int32), norms))
    assert 0.1 < sampled[60:].mean() < 0.6


@pytest.mark.parametrize(
    "make",
    [
        lambda: arsam_jax.ae_sam(0.1, 40),
        lambda: arsam_jax.arsam(0.1, 1.0, segment_length=5, initial_samples=3),
    ],
    ids=["ae_sam", "arsam"],
)
def test_decisions_do_not_depend_on_the_scale_of_the_loss(make):
    tx = make()
    batches = jax.tree.map(lambda *x: jnp.stack(x), *map(make_batch, range(40)))

    @jax.jit
    def decisions(scale):
        def step(carry, batch):
            params, state = carry

            def grad_fn(params):
                return jax.grad(lambda params: scale * loss_fn(params, batch))(params)

            updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
            params = jax.tree.map(lambda p, u: p - 0.05 * (u / scale), params, updates)
            return (params, state), state.metrics.sampled

        params = make_params()
        return jax.lax.scan(step, (params, tx.init(params)), batches)[1]

    usual = decisions(1.0)
    assert 0 < usual.sum() < 40
    for scale in (1e-15, 1e15):
        np.testing.assert_array_equal(decisions(scale), usual)


def test_final_phase_counts_exactly_and_a_share_of_nothing_takes_nothing():
    steps = 2**25 + 1  # beyond what float32 counts
    policy = sampling.final_phase(steps, 1 / steps)
    assert [bool(policy.decide((), jnp.int32(i), 1.0)[0]) for i in (steps - 2, steps - 1)] == [
        False,
        True,
    ]
    never = sampling.final_phase(10, 0)
    assert not any(never.decide((), jnp.int32(i), 1.0)[0] for i in range(20))
