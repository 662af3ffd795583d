"""ARSAM against a NumPy reference written from the paper (arXiv 2510.03763), and its controller."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import arsam_jax
from arsam_jax import sampling
from tests import reference
from tests.problem import train


@pytest.mark.parametrize("window", [2, 0, None])
@pytest.mark.parametrize("warmup", [0, 17])
def test_arsam_equals_the_paper_over_300_steps(window, warmup, x64):
    rho, alpha, beta, segment, s_0, s_min, lr = 0.2, 0.9, 0.9, 10, 3, 1, 0.02
    rng = np.random.default_rng(3)
    curvature, targets = rng.uniform(0.5, 3, size=6), rng.normal(size=(300, 6))

    def gradient(w, target):  # of sum(curvature (w - target)^2 / 2 + w^4 / 4)
        return curvature * (w - target) + w**3

    tx = arsam_jax.arsam(
        rho,
        alpha,
        ema_decay=beta,
        segment_length=segment,
        initial_samples=s_0,
        min_samples=s_min,
        warmup_steps=warmup,
        reuse_steps=window,
        seed=5,
    )
    update = jax.jit(
        lambda w, state, target: tx.update(
            gradient(w, target), state, w, grad_fn=lambda v: gradient(v, target)
        )
    )
    paper = reference.ARSAM(rho, alpha, beta, segment, s_0, s_min, warmup, window)
    w = np.full(6, 0.5)
    state = tx.init(jnp.asarray(w))
    reused = 0
    for i in range(1, 301):
        target = targets[i - 1]
        updates, state = update(jnp.asarray(w), state, jnp.asarray(target))
        expected = paper.update(i, lambda v: gradient(v, target), w, state.metrics.sampled)
        np.testing.assert_allclose(updates, expected, rtol=1e-12)
        reused += not np.array_equal(expected, gradient(w, target)) and not state.metrics.sampled
        if paper.c is not None and paper.psf is not None:
            np.testing.assert_allclose(state.sampling.ratio, paper.c, rtol=1e-5)
            if window != 0:
                np.testing.assert_allclose(state.correction.tree, paper.psf, rtol=1e-12)
        np.testing.assert_allclose(state.sampling.ema_ratio, paper.r_hat, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(state.sampling.samples, paper.s, rtol=1e-3)
        np.testing.assert_allclose(state.sampling.probability, paper.p, rtol=1e-3)
        if i <= warmup:
            assert state.metrics.sampled
        w = w - lr * np.asarray(updates)
    assert 30 < state.metrics.num_sampled < 270
    assert (reused > 0) == (window != 0)


def run_controller(policy, ratios, norm=2.0, rhos=None):
    """Feeds a policy a sequence of ratios, None where not sampled, and returns its states."""
    state, states = policy.init(), []
    for i, ratio in enumerate(ratios):
        args = jnp.int32(i), jnp.array(ratio is not None), jnp.float32(norm)
        correction_norm = jnp.float32(0.0 if ratio is None else ratio) * norm
        rho = jnp.float32(0.1 if rhos is None else rhos[i])
        state = policy.record(state, *args, correction_norm, rho)
        states.append(state)
    return states


def test_a_segment_without_samples_leaves_s_alone():
    policy = sampling.autoregressive(1.0, segment_length=4, initial_samples=2, ema_decay=0.0)
    states = run_controller(policy, [1.0, 1.5, None, None] + [None] * 12 + [2.25] + [None] * 3)
    samples = [float(states[i].samples) for i in (3, 7, 11, 15, 19)]
    np.testing.assert_allclose(samples, [3.0, 3.0, 3.0, 3.0, 4.0])  # 2·1.5, held, 3·1.5 clipped


def test_s_stays_within_its_bounds_and_p_follows():
    rising = run_controller(
        sampling.autoregressive(1.0, segment_length=4, ema_decay=0.5), [2.0**i for i in range(40)]
    )
    falling = run_controller(
        sampling.autoregressive(1.0, segment_length=4, initial_samples=4, ema_decay=0.5),
        [2.0**-i for i in range(40)],
    )
    assert (rising[-1].samples, rising[-1].probability) == (4.0, 1.0)
    assert (falling[-1].samples, falling[-1].probability) == (1.0, 0.25)


@hypothesis.settings(deadline=None, max_examples=15)
@hypothesis.given(
    alpha=st.floats(0, 5, width=32),
    decay=st.floats(0, 0.984375, width=32),
    segment=st.integers(1, 7),
    ratios=st.lists(
        st.one_of(st.none(), st.just(np.nan), st.floats(0, width=32, allow_infinity=True)),
        min_size=1,
        max_size=30,
    ),
)
@hypothesis.example(alpha=0.0, decay=0.0, segment=1, ratios=[1e-30, 1e10])  # r overflows
def test_no_sequence_of_ratios_breaks_the_controller(alpha, decay, segment, ratios):
    policy = sampling.autoregressive(alpha, ema_decay=decay, segment_length=segment)
    for state in run_controller(policy, ratios):
        assert np.isfinite(state.ratio)
        assert 1 <= state.samples <= segment
        assert np.float32(state.samples) / np.float32(segment) == pytest.approx(state.probability)


def test_norm_mask_restricts_the_ratio_to_some_leaves():
    params = {"body": jnp.array([3.0, 0.0]), "head": jnp.array([4.0])}
    curvature = {"body": 2.0, "head": 5.0}

    def grad_fn(w):
        return {name: curvature[name] * w[name] for name in w}

    ratios = {}
    for name, mask in (
        ("all", None),
        ("head", {"body": False, "head": True}),
        ("head by function", lambda params: {"body": False, "head": True}),
    ):
        tx = arsam_jax.arsam(1.0, 0.5, warmup_steps=1, norm_mask=mask)
        _, state = tx.update(
            grad_fn(params), tx.init(params), params, grad_fn=grad_fn, measure=True
        )
        ratios[name] = float(state.sampling.ratio)
        np.testing.assert_allclose(state.metrics.grad_norm, np.sqrt(36 + 400), rtol=1e-6)
    g = np.array([6.0, 20.0])
    psf = np.array([2.0, 5.0]) * g / np.linalg.norm(g)
    assert ratios["all"] == pytest.approx(np.linalg.norm(psf) / np.linalg.norm(g), rel=1e-5)
    assert ratios["head"] == pytest.approx(psf[1] / g[1], rel=1e-5)
    assert ratios["head by function"] == ratios["head"]


def test_warm_up_samples_its_steps_and_no_others():
    policy = sampling.autoregressive(0.0, initial_samples=0, min_samples=0, warmup_steps=3)
    sampled = [bool(policy.decide(policy.init(), jnp.int32(i), 1.0)[0]) for i in range(6)]
    assert sampled == [True] * 3 + [False] * 3


def test_the_sampled_share_follows_the_probability():
    p = 0.3
    tx = optax.chain(
        arsam_jax.arsam(0.1, 0.0, segment_length=10, initial_samples=10 * p), optax.sgd(0.01)
    )
    _, opt_state = train(tx, 400)
    share = float(arsam_jax.get_metrics(opt_state).num_sampled) / 400
    assert abs(share - p) < 4 * np.sqrt(p * (1 - p) / 400)


def test_seeds_give_different_runs_and_the_same_seed_the_same():
    def run(seed):
        tx = arsam_jax.arsam(0.1, 0.5, segment_length=5, initial_samples=2, seed=seed)
        return train(optax.chain(tx, optax.sgd(0.05)), 12)[0]

    chex.assert_trees_all_equal(run(1), run(1))
    assert not np.array_equal(run(1)["kernel"], run(2)["kernel"])


# A radius that changes


@functools.cache
def samples_taken(rho, steps=200, inject=False, **kwargs):
    """The numbers of samples for four seeds on a noisy quadratic, where c is proportional to ρ."""
    rng = np.random.default_rng(0)
    curvature = jnp.asarray(rng.uniform(0.5, 3, size=20), jnp.float32)
    targets = jnp.asarray(rng.normal(size=(steps, 20)), jnp.float32)
    make = arsam_jax.arsam
    if inject:
        make = optax.inject_hyperparams(make, static_args=("alpha", "segment_length", "seed"))
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules need it.
        tx, w = make(rho=rho, alpha=0.8, segment_length=8, **kwargs), jnp.ones(20)

    def count(key):
        def step(carry, target):
            w, state = carry

            def grad_fn(w):
                return curvature * (w - target)

            updates, state = tx.update(grad_fn(w), state, w, grad_fn=grad_fn)
            return (w - 0.02 * updates, state), None

        start = optax.tree.set(tx.init(w), key=key)
        (_, state), _ = jax.lax.scan(step, (w, start), targets)
        return arsam_jax.get_metrics(state).num_sampled

    keys = [sampling.autoregressive(0.8, seed=seed).init().key for seed in range(4)]
    with jax.numpy_dtype_promotion("standard"):
        return np.array(jax.vmap(count)(jnp.stack(keys)))


CHANGING = {
    "warm-up": optax.linear_schedule(0.0, 0.1, 20),
    "tiny warm-up": optax.linear_schedule(1e-9, 0.1, 100),
    "linear decay": optax.linear_schedule(0.1, 0.0, 200),
    "cosine decay": optax.cosine_decay_schedule(0.1, 190),
    "steps": optax.piecewise_constant_schedule(0.2, {50: 0.1, 100: 0.1}),
    "restarts": lambda step: 0.1 * (1 - (step % 50) / 50),
}


@pytest.mark.parametrize("inject", [False, True], ids=["schedule", "injected"])
@pytest.mark.parametrize("name", CHANGING)
def test_a_radius_that_changes_moves_the_controller_no_more_than_a_constant_one(name, inject):
    constant = samples_taken(0.1)
    changing = samples_taken(CHANGING[name], inject=inject)
    assert constant.max() < 100
    assert (np.abs(changing - constant) <= 0.35 * constant + 6).all(), (changing, constant)


def test_at_a_constant_radius_the_schedule_changes_nothing_to_the_bit():
    def run(rho):
        tx = optax.chain(arsam_jax.arsam(rho, 0.9, segment_length=5), optax.sgd(0.05))
        return train(tx, 60)

    params, state = run(0.1)
    by_schedule = run(lambda step: jnp.float32(0.1))
    chex.assert_trees_all_equal((params, state), by_schedule)


def test_the_change_of_the_ratio_is_that_at_one_radius():
    policy = sampling.autoregressive(1.0, ema_decay=0.0, segment_length=4)
    states = run_controller(policy, [1.0, 3.0, 3.0, 0.5], rhos=[0.1, 0.2, 0.2, 0.05])
    changes = [float(s.ema_ratio) for s in states]
    np.testing.assert_allclose(changes, [0, 0.5, 0, 0.5 / 0.75 - 1], atol=1e-6)


def test_where_the_radius_changes_rounding_is_no_change():
    policy = sampling.autoregressive(1.0, ema_decay=0.0, segment_length=4)
    states = run_controller(policy, [1e-7, 0.5, 1e-7, 0.6], rhos=[1e-9, 0.1, 1e-9, 0.1])
    assert [float(s.ema_ratio) for s in states] == [0, 0, 0, 0]
