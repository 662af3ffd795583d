"""``budgeted_sam``: the share of samples, the radius that depends on it, and bounded reuse."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import arsam_jax
from arsam_jax import correction, sampling, sharpness_aware
from tests.problem import train

BASE = optax.sgd(0.05, momentum=0.9)


def decisions(policy, steps, first=0, state=None):
    """The decisions of a policy and its state at the end."""
    norm = jnp.float32(1)

    def step(state, i):
        sampled, state = policy.decide(state, i, norm)
        return policy.record(state, i, sampled, norm, norm, norm), sampled

    index = jnp.arange(first, first + steps, dtype=jnp.int32)
    state = policy.init() if state is None else state
    state, sampled = jax.lax.scan(step, state, index)
    return sampled, state


def metrics_of_steps(tx, steps):
    """Whether each step was sampled, and its radius, on a small quadratic."""
    params = jnp.array([1.0, -2.0])

    def step(state, _):
        _, state = tx.update(params, state, params, grad_fn=lambda w: 2 * w)
        return state, (state.metrics.sampled, state.metrics.rho)

    return jax.lax.scan(step, tx.init(params), length=steps)[1]


@pytest.mark.parametrize("share", [0.0625, 0.3, 0.9])
def test_the_budget_is_met_in_a_long_run(share):
    sampled, _ = decisions(sampling.budgeted(share), 500_000)
    strayed = np.abs(np.cumsum(np.asarray(sampled)) - share * np.arange(1, 500_001))
    assert strayed.max() <= 0.5


def test_samples_are_evenly_spaced():
    sampled, _ = decisions(sampling.budgeted(0.125), 80)
    assert np.nonzero(sampled)[0].tolist() == list(range(3, 80, 8))
    sampled, _ = decisions(sampling.budgeted(0.3), 1000)
    assert set(np.diff(np.nonzero(sampled)[0])) == {3, 4}


def test_a_resumed_policy_continues_with_the_same_decisions():
    policy = sampling.budgeted(0.2)
    whole, _ = decisions(policy, 300)
    start, state = decisions(policy, 117)
    rest, _ = decisions(policy, 183, first=117, state=state)
    np.testing.assert_array_equal(np.concatenate([start, rest]), whole)


def test_the_number_of_samples_differs_from_the_budget_by_at_most_one():
    shares = jnp.linspace(0, 1, 301)
    sampled = jax.vmap(lambda share: decisions(sampling.budgeted(share), 200)[0])(shares)
    budget = np.outer(shares, np.arange(1, 201))
    assert np.abs(np.cumsum(np.asarray(sampled), axis=1) - budget).max() <= 1 + 1e-3


def test_speedup_and_share_are_the_same_price():
    for speedup, share in ((16 / 9, 0.125), (1.6, 0.25), (1.0, 1.0)):
        by_speedup, _ = decisions(sampling.budgeted(speedup=speedup), 64)
        by_share, _ = decisions(sampling.budgeted(share), 64)
        np.testing.assert_array_equal(by_speedup, by_share)
        assert arsam_jax.budgeted_sam(0.1, speedup=speedup) is not None
    sampled, _ = metrics_of_steps(arsam_jax.budgeted_sam(0.1, speedup=1.6), 40)
    assert sampled.sum() == 10


@pytest.mark.parametrize("rho", [0.1, lambda step: 0.1])
def test_the_radius_grows_as_the_share_shrinks(rho):
    for share in (0.25, 0.0625):
        _, radii = metrics_of_steps(arsam_jax.budgeted_sam(rho, share=share), 3)
        np.testing.assert_allclose(radii, 0.1 * share ** (-2 / 3), rtol=1e-6)


@pytest.mark.parametrize("rho", [0.1, lambda step: 0.1])
def test_the_radius_rises_from_that_of_sam_to_one_that_restores_the_mean_force(rho):
    tx = arsam_jax.budgeted_sam(rho, share=0.25, total_steps=20)
    sampled, radii = metrics_of_steps(tx, 24)
    expected = 0.1 * (1 + 3 * np.minimum(np.arange(24) / 20, 1))  # It stays there after the run.
    np.testing.assert_allclose(radii, expected, rtol=1e-6)
    assert sampled.sum() == 6


def test_a_rising_radius_takes_radii_and_shares_of_any_dtype(x64):
    params = jnp.ones(2, jnp.float32)
    for rho in (jnp.bfloat16(0.5), jnp.float64(0.5), lambda step: jnp.float64(0.5)):
        tx = arsam_jax.budgeted_sam(rho, share=np.float64(0.25), total_steps=8)
        state = tx.init(params)._replace(step=jnp.int32(4))
        _, state = tx.update(params, state, params, grad_fn=lambda w: w)
        assert state.metrics.rho == 0.5 * 2.5


@pytest.mark.parametrize("total_steps", [None, 20])
def test_the_whole_budget_is_sam(total_steps):
    tx = arsam_jax.budgeted_sam(0.1, share=1.0, total_steps=total_steps)
    ours, _ = train(optax.chain(tx, BASE), 20)
    sam, _ = train(optax.chain(arsam_jax.sam(0.1), BASE), 20)
    chex.assert_trees_all_equal(ours, sam)


@pytest.mark.parametrize("bound", [0.1, 0.5, 100.0])
def test_bounded_reuse_descends_however_old_the_psf_is(bound):
    tx = sharpness_aware(
        2.0, sampling=sampling.every_k(5), correction=correction.reuse_psf(None, bound=bound)
    )
    rng = np.random.default_rng(0)
    curvature = jnp.asarray(rng.normal(size=(6, 6)), jnp.float32)
    state = tx.init(jnp.zeros(6))
    psf = np.zeros(6)
    for step in range(15):
        w = jnp.asarray(rng.normal(size=6), jnp.float32)
        g = curvature @ w
        updates, state = tx.update(g, state, w, grad_fn=lambda v: curvature @ v)
        added = np.asarray(updates - g)
        if step % 5 == 0:
            psf = added
            continue
        norm_g, norm_psf = np.linalg.norm(g), np.linalg.norm(psf)
        np.testing.assert_allclose(added, psf * min(1, bound * norm_g / norm_psf), rtol=1e-3)
        if bound < 1:
            assert updates @ g >= (1 - bound) * norm_g**2 * (1 - 1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sampling.budgeted(), "either share or speedup"),
        (lambda: sampling.budgeted(0.1, speedup=1.5), "either share or speedup"),
        (lambda: arsam_jax.budgeted_sam(0.1, share=0.1, speedup=1.5), "either share or speedup"),
        (lambda: sampling.budgeted(1.1), "share must be .* <= 1, got 1.1"),
        (lambda: sampling.budgeted(speedup=2.5), "speedup must be .* <= 2, got 2.5"),
        (lambda: arsam_jax.budgeted_sam(0.1, share=0.0), "share must be .* > 0 .* got 0.0"),
        (lambda: arsam_jax.budgeted_sam(0.1, speedup=2), "speedup must be .* < 2, got 2"),
        (lambda: arsam_jax.budgeted_sam(0.1, total_steps=0), "total_steps must be .* >= 1, got 0"),
        (lambda: arsam_jax.budgeted_sam(0.1, bound=0), "bound must be .* > 0, got 0"),
        (lambda: correction.reuse_psf(sample_bound=0), "sample_bound must be .* > 0, got 0"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_credit_is_limited_while_nothing_can_be_sampled():
    """After 200 steps with ρ = 0 no burst of samples follows."""
    tx = arsam_jax.budgeted_sam(lambda step: jnp.where(step < 200, 0.0, 0.1), share=0.25)
    sampled, _ = metrics_of_steps(tx, 240)
    assert not sampled[:200].any()
    assert 10 <= sampled[200:].sum() <= 11


@pytest.mark.parametrize(
    ("factor", "reuse_dtype"),
    [(jnp.inf, None), (1e6, jnp.float16)],
    ids=["not finite", "beyond the buffer"],
)
def test_a_second_gradient_that_is_refused_is_paid_for(factor, reuse_dtype):
    tx = arsam_jax.budgeted_sam(0.1, share=0.25, reuse_dtype=reuse_dtype)
    params = jnp.ones(2)
    state = tx.init(params)

    @jax.jit
    def update(params, state):
        return tx.update(params, state, params, grad_fn=lambda w: w * factor)

    for _ in range(40):
        _, state = update(params, state)
    assert state.metrics.num_sampled == 10


def test_a_share_of_another_dtype_leaves_the_state_as_it_was(x64):
    policy = sampling.budgeted(np.float64(0.3))
    state = policy.init()
    _, after = policy.decide(state, jnp.int32(0), jnp.float32(1))
    chex.assert_trees_all_equal_dtypes(state, after)


def test_the_bound_holds_for_what_is_emitted():
    reuse = correction.reuse_psf(None, strength=5.0, bound=0.5)
    grads = jnp.array([1.0, 0.0])
    kept, _ = reuse.fresh(grads, jnp.array([-2.0, 4.0]))
    a, b = reuse.stale(kept, grads, jnp.int32(1))
    assert a == 1
    assert jnp.linalg.norm(b * kept.tree) == pytest.approx(0.5)


@pytest.mark.parametrize("strength", [1, 0.5])
@pytest.mark.parametrize("length", [0.5, 1.99, 2.01, 50.0])
def test_a_sampled_psf_is_shortened_to_its_bound(length, strength):
    """Against NumPy; a shorter one keeps its length."""
    reuse = correction.reuse_psf(None, strength=strength, sample_bound=2 * strength)
    grads, direction = jnp.array([3.0, 4.0]), np.array([0.6, -0.8])
    psf = jnp.asarray(5 * length * direction, jnp.float32)
    kept, (a, b) = reuse.fresh(grads, grads + psf)
    np.testing.assert_allclose(kept.tree, 5 * min(length, 2.0) * direction, rtol=1e-5)
    assert (a, b) == (1, strength)


@pytest.mark.parametrize("share", [0.25, 0.125])
def test_a_radius_that_is_too_large_moves_no_further_than_the_bound(share):
    """L = ‖w‖²/2 with curvature 1, so the PSF is as long as ρ, and a hundred times the gradient."""
    tx = arsam_jax.budgeted_sam(100.0, share=share)
    w = jnp.array([0.6, 0.8])
    state = tx.init(w)
    lengths = []
    for _ in range(16):
        updates, state = tx.update(w, state, w, grad_fn=lambda w: w)
        lengths.append(float(jnp.linalg.norm(updates)))
    assert max(lengths) == pytest.approx(1 + share**-0.5, rel=1e-5)
    assert lengths.count(max(lengths)) == 16 * share


def test_what_is_not_finite_is_still_seen():
    tx = arsam_jax.budgeted_sam(0.1, share=0.5)
    w = jnp.ones(2)
    state, seen = tx.init(w), []
    for _ in range(2):
        updates, state = tx.update(w, state, w, grad_fn=lambda w: w * jnp.nan)
        seen.append(bool(jnp.isfinite(updates).all()))
    assert sorted(seen) == [False, True]
    assert jnp.isfinite(state.correction.tree).all()


@pytest.mark.parametrize("rho", [-0.1, "0.1", None])
def test_a_bad_radius_is_named_as_it_was_given(rho):
    with pytest.raises((TypeError, ValueError), match=rf"^rho must be .*, got {rho!r}\."):
        arsam_jax.budgeted_sam(rho)
