"""Base optimizers and schedules by name: what each does in closed form, after any link."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import arsam_jax
from examples.common import optimizers

pytestmark = pytest.mark.usefixtures("standard_promotion")

PARAMS = {"matrix": np.float32([[1, -2], [3, 4]]), "bias": np.float32([0.5, -1])}
GRADS = {"matrix": np.float32([[0.1, 0.2], [-0.3, 0.4]]), "bias": np.float32([1, -2])}


def first_update(name, **kwargs):
    tx = optimizers.make_optimizer(name, 0.01, **kwargs)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    return updates


def test_the_weight_decay_of_sgd_is_coupled_and_that_of_the_others_is_not():
    grads = first_update("sgd", weight_decay=0.1)
    expected = jax.tree.map(lambda g, w: -0.01 * (g + 0.1 * w), GRADS, PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), grads, expected)
    for name in ("adamw", "lion", "muon"):
        plain, decayed = first_update(name), first_update(name, weight_decay=0.1)
        expected = jax.tree.map(lambda u, w: u - 0.01 * 0.1 * w, plain, PARAMS)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), decayed, expected)


def test_first_steps_are_of_the_size_of_the_learning_rate():
    for name in ("adamw", "lion"):
        signs = jax.tree.map(lambda g: -0.01 * np.sign(g), GRADS)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), first_update(name), signs
        )
    updates = first_update("muon")
    np.testing.assert_allclose(updates["bias"], [-0.0147, 0.0147], rtol=1e-2)  # Adam's, Nesterov
    values = np.linalg.svd(updates["matrix"], compute_uv=False)  # all alike: orthogonalised
    assert values.max() / values.min() < 2
    assert np.linalg.cond(GRADS["matrix"]) > 2


def test_muon_takes_convolutions_as_matrices_of_their_output_channels():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32)
    tx = optimizers.make_optimizer("muon", 0.01)
    updates, _ = tx.update({"w": kernel}, tx.init({"w": kernel}), {"w": kernel})
    values = np.linalg.svd(np.reshape(updates["w"], (36, 5)), compute_uv=False)
    assert values.max() / values.min() < 2


def test_momentum_is_of_sgd():
    tx = optimizers.make_optimizer("sgd", 0.1, momentum=0.5)
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    updates, _ = tx.update(GRADS, state, PARAMS)
    np.testing.assert_allclose(updates["bias"], -0.1 * 1.5 * GRADS["bias"], rtol=1e-6)


@pytest.mark.parametrize("link", [optax.identity(), arsam_jax.sam(0.1)])
def test_a_multiplied_rate_is_that_of_an_optimizer_with_it(link):
    multipliers = {"matrix": 0.1, "bias": 10.0}
    moved = {}
    for rates in ((1.0, multipliers), (0.1, {}), (10.0, {})):
        base = optimizers.make_optimizer("sgd", 0.01 * rates[0], weight_decay=0.1)
        last = optimizers.multiply_rates(lambda path, own=rates[1]: own.get(path[-1], 1.0))
        tx = optax.chain(link, base, last)
        params, state = PARAMS, tx.init(PARAMS)
        for _ in range(2):
            updates, state = tx.update(GRADS, state, PARAMS, grad_fn=lambda w: GRADS)
            params = optax.apply_updates(params, updates)
        moved[rates[0]] = params
    for name, rate in multipliers.items():
        np.testing.assert_allclose(moved[1.0][name], moved[rate][name], rtol=1e-6)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_each_follows_a_link_and_can_be_decoupled(name):
    schedule = optimizers.make_schedule("wsd", 0.01, 10)
    base = optimizers.make_optimizer(name, schedule, weight_decay=0.01)
    for tx in (
        optax.chain(arsam_jax.sam(0.05), base),
        arsam_jax.decouple(arsam_jax.wsam(0.05), base, schedule),
        optax.chain(arsam_jax.sampa(0.05, schedule), base),
    ):
        updates, _ = jax.eval_shape(
            lambda params, tx=tx: tx.update(
                *(params, tx.init(params), params),
                grad_fn=lambda w: w,
                previous_grad_fn=lambda w: w,
            ),
            PARAMS,
        )
        assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, PARAMS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [0, 0.5, 1, 1, 1, 1]),
        ("step", [0, 0.5, 1, 0.1, 0.01, 0.01]),
        ("wsd", [0, 0.5, 1, 1, 1, 0.5]),
        ("poly", [0, 0.5, 1, (10 / 18) ** 0.9, (4 / 18) ** 0.9, (2 / 18) ** 0.9]),
        ("cosine", [0, 0.5, 1, (1 + np.cos(np.pi * 8 / 18)) / 2, None, None]),
    ],
)
def test_schedules_at_chosen_steps(name, expected):
    schedule = optimizers.make_schedule(name, 1.0, 20, warmup_steps=2)
    for step, value in zip((0, 1, 2, 10, 16, 18), expected, strict=True):
        if value is not None:
            np.testing.assert_allclose(schedule(step), value, rtol=1e-5, err_msg=f"step {step}")
    assert float(schedule(0)) == 0
    assert float(optimizers.make_schedule(name, 1.0, 20)(0)) == 1  # no warm-up
    if name in ("cosine", "wsd", "poly"):
        np.testing.assert_allclose(schedule(20), 0, atol=1e-6)


def test_steps_fall_where_they_are_asked_to():
    schedule = optimizers.make_schedule("step", 1.0, 210, decay_at=(170 / 210, 200 / 210))
    values = [float(schedule(step)) for step in (0, 169, 170, 199, 200, 209)]
    np.testing.assert_allclose(values, [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)
    assert float(optimizers.make_schedule("step", 1.0, 10, decay_at=())(9)) == 1


def test_names_and_warm_ups_that_there_are_not():
    with pytest.raises(ValueError, match="no optimizer 'adam'; there are sgd, adamw, lion, muon"):
        optimizers.make_optimizer("adam", 0.1)
    with pytest.raises(ValueError, match="no schedule 'linear'; there are cosine, step, wsd"):
        optimizers.make_schedule("linear", 0.1, 10)
    for name, steps in (("step", 6), ("wsd", 9), ("cosine", 11), ("constant", -1)):
        with pytest.raises(ValueError, match=f"warm-up of {name} must be 0 to"):
            optimizers.make_schedule(name, 0.1, 10, warmup_steps=steps)


def test_gradients_are_pulled_back_between_a_method_and_the_base_optimizer():
    params = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}
    grads = jax.tree.map(jnp.ones_like, params)
    tx = optax.chain(optimizers.pull_back(), optax.sgd(0.5, momentum=0.9))
    state = tx.init(params)
    _, mapped = jax.vjp(lambda p: {"w": 4 * p["w"] * p["b"], "b": p["b"]}, params)
    updates, state = tx.update(grads, state, params, pull_back=lambda g: mapped(g)[0])
    np.testing.assert_allclose(updates["w"], [-6.0, -6.0])
    np.testing.assert_allclose(updates["b"], -0.5 * (1 + 4 * (1 - 2)))
    plain, _ = optax.sgd(0.5).update(grads, optax.sgd(0.5).init(params), params)
    passed, _ = tx.update(grads, tx.init(params), params)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, passed, plain)))
