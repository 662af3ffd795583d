"""Radius policies: the ratio that ``hold_ratio`` holds, and methods with a policy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import arsam_jax
from arsam_jax import radius, sampling
from tests.methods import METHODS
from tests.problem import make_batch, make_params, make_step, train

ZERO = jnp.zeros([], jnp.int32)


def record(policy, state, correction_norm, *, grad_norm=1.0, sampled=True, rho=None):
    rho = policy.value(state, ZERO) if rho is None else jnp.float32(rho)
    norms = jnp.float32(grad_norm), jnp.float32(correction_norm)
    return policy.record(state, ZERO, jnp.array(sampled), *norms, rho)


def test_radius_moves_as_the_formula_says():
    """Against NumPy, from the formula."""
    policy = radius.hold_ratio(0.5, initial=0.2, rate=0.3)
    ratios = np.random.default_rng(0).lognormal(-1, 1, size=30)
    state, rho = policy.init(None), 0.2
    for k, ratio in enumerate(ratios):
        np.testing.assert_allclose(policy.value(state, ZERO), rho, rtol=1e-4)
        state = record(policy, state, ratio)
        rho *= np.clip(0.5 / ratio, 0.1, 10) ** max(0.3, (k + 1) ** -0.5)
    assert int(state.samples) == 30


@pytest.mark.parametrize(
    ("signal", "expected"),
    [
        ({"correction_norm": 0.0, "grad_norm": 0.0, "sampled": False}, 0.2),  # no sample
        ({"correction_norm": 0.0}, 0.2),  # a loss that is a plane
        ({"correction_norm": 1e-6}, 0.2),  # rounding
        ({"correction_norm": 0.1, "grad_norm": 0.0}, 0.2),
        ({"correction_norm": np.nan, "grad_norm": np.nan, "sampled": False}, 0.2),
        ({"correction_norm": np.nan, "sampled": False}, 0.02),  # too far: not finite there
        ({"correction_norm": 1e3}, 0.02),
        ({"correction_norm": 1e-3}, 2.0),
    ],
)
def test_what_moves_it_and_how_far_at_most(signal, expected):
    policy = radius.hold_ratio(0.5, initial=0.2)
    state = record(policy, policy.init(None), **signal)
    np.testing.assert_allclose(state.rho, expected, rtol=1e-6)
    assert int(state.samples) == (expected != 0.2)


def quadratic_step(tx, curvature, scale=1.0):
    def grad_fn(w):
        return scale * curvature * w

    def step(w, state):
        updates, state = tx.update(grad_fn(w), state, w, grad_fn=grad_fn)
        return optax.apply_updates(w, updates), state

    return jax.jit(step)


@pytest.mark.parametrize("initial", [1e-3, 0.5, 30.0])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_radius_of_a_quadratic_is_the_ratio_of_the_parameters(initial, scale):
    """L = s h ‖w‖² / 2: the PSF is s h ρ g/‖g‖, so that c = ρ / ‖w‖, whatever s and h are."""
    w = jnp.array([3.0, 4.0])
    tx = arsam_jax.sam(radius.hold_ratio(0.2, initial=initial))
    state, step = tx.init(w), quadratic_step(tx, 2.0, scale)
    for _ in range(20):
        _, state = step(w, state)
    np.testing.assert_allclose(state.radius.rho, 0.2 * 5, rtol=0.02)


def test_it_follows_the_parameters_and_resumes_exactly():
    policy = radius.hold_ratio(0.3)
    tx = optax.chain(arsam_jax.arsam(policy, 0.5, segment_length=5), optax.sgd(0.05))
    whole, state = train(tx, 30)
    part, middle = train(tx, 17)
    resumed, last = train(tx, 13, part, first=17, opt_state=middle)
    chex.assert_trees_all_equal(whole, resumed)
    chex.assert_trees_all_equal(state, last)


def test_without_samples_the_radius_stays_and_the_gradient_is_returned():
    tx = arsam_jax.sharpness_aware(radius.hold_ratio(0.3), sampling=sampling.never())
    grads = params = make_params()
    state, update = tx.init(params), jax.jit(tx.update, static_argnames="grad_fn")
    for _ in range(10):
        updates, state = update(grads, state, params, grad_fn=lambda params: params)
        chex.assert_trees_all_equal(updates, grads)
    assert float(state.radius.rho) == np.float32(0.05)


OF_OTHER_EXAMPLES = ("esam", "k_sam", "ausam", "sampa")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_a_policy_or_raises_an_error(name):
    overrides = {"rho": radius.hold_ratio(0.3)}
    if name == "budgeted_sam":
        overrides["total_steps"] = None
    if name in OF_OTHER_EXAMPLES:
        with pytest.raises(ValueError, match="on other examples"):
            METHODS[name].make(**overrides)
        return
    tx, params = METHODS[name].make(**overrides), make_params()
    state = tx.init(params)
    after = jax.eval_shape(make_step(tx), params, state, make_batch(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, (params, state))


@pytest.mark.parametrize("name", ["arsam", "looksam", "momentum_sam", "sparse_sam"])
def test_the_policy_is_told_of_every_sampled_step(name):
    tx = METHODS[name].make(rho=radius.hold_ratio(0.3, initial=0.02))
    params, opt_state = train(optax.chain(tx, optax.sgd(0.02)), 12)
    chex.assert_tree_all_finite(params)
    state = arsam_jax.get_state(opt_state)
    without_ascent = {"momentum_sam": 1}.get(name, 0)  # At first there is no momentum.
    assert int(state.radius.samples) == int(state.metrics.num_sampled) - without_ascent > 0
    assert float(state.radius.rho) > 0.02


@pytest.mark.parametrize("name", ["arsam", "budgeted_sam", "momentum_sam"])
def test_radius_proportional_to_the_parameters_is_computed_from_the_initial_ones(name):
    """It equals a schedule of this number although the parameters move."""
    norm = np.float32(0.05) * optax.tree.norm(make_params())
    results = []
    for rho in (radius.proportional_to_params(0.05), lambda step: jnp.float32(norm)):
        tx = optax.chain(METHODS[name].make(rho=rho), optax.sgd(0.1))
        params, state = train(tx, 5)
        results.append((params, arsam_jax.get_metrics(state).rho))
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-6)
    assert results[0][1] > 0


def test_radius_proportional_to_unknown_or_zero_parameters_is_nan():
    """If ``init`` gets shapes, the state has to be restored from a checkpoint."""
    for params in (jax.eval_shape(make_params), jax.tree.map(jnp.zeros_like, make_params())):
        tx = arsam_jax.sam(radius.proportional_to_params())
        state = tx.init(params)
        updates, _ = tx.update(make_params(), state, make_params(), grad_fn=lambda params: params)
        assert all(np.isnan(x).all() for x in jax.tree.leaves(updates))


def test_sam_holds_the_ratio_it_is_told():
    tx = optax.chain(arsam_jax.sam(radius.hold_ratio(0.4)), optax.sgd(0.01))
    step = jax.jit(make_step(tx, measure=True))
    params, opt_state = make_params(), tx.init(make_params())
    ratios = []
    for i in range(60):
        params, opt_state = step(params, opt_state, make_batch(i))
        metrics = arsam_jax.get_metrics(opt_state)
        ratios.append(float(metrics.correction_norm / metrics.grad_norm))
    assert 0.3 < np.exp(np.mean(np.log(ratios[20:]))) < 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: radius.proportional_to_params(-1), "fraction must be a finite number >= 0"),
        (lambda: radius.hold_ratio(0), "ratio must be a finite number > 0"),
        (lambda: radius.hold_ratio(0.5, initial=-1), "initial must be a finite number > 0"),
        (lambda: radius.hold_ratio(0.5, rate=0), "rate must be a finite number > 0 and <= 1"),
        (
            lambda: arsam_jax.budgeted_sam(radius.hold_ratio(0.5), total_steps=10),
            "total_steps raises a given radius",
        ),
    ],
)
def test_what_makes_no_sense_is_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()
