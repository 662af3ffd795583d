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


def test_the_weight_decay_of_sgd_is_coupled_and_that_of_adamw_is_not():
    grads = first_update("sgd", weight_decay=0.1)
    expected = jax.tree.map(lambda g, w: -0.01 * (g + 0.1 * w), GRADS, PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), grads, expected)
    decayed = first_update("adamw", weight_decay=0.1)
    expected = jax.tree.map(lambda g, w: -0.01 * (np.sign(g) + 0.1 * w), GRADS, PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), decayed, expected)


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


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [0, 0.5, 1, 1, 1, 1]),
        ("step", [0, 0.5, 1, 0.1, 0.01, 0.01]),
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
    if name in ("cosine", "poly"):
        np.testing.assert_allclose(schedule(20), 0, atol=1e-6)


def test_steps_fall_where_they_are_asked_to():
    schedule = optimizers.make_schedule("step", 1.0, 210, decay_at=(170 / 210, 200 / 210))
    values = [float(schedule(step)) for step in (0, 169, 170, 199, 200, 209)]
    np.testing.assert_allclose(values, [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)
    assert float(optimizers.make_schedule("step", 1.0, 10, decay_at=())(9)) == 1


def test_names_and_warm_ups_that_there_are_not():
    with pytest.raises(ValueError, match="no optimizer 'adam'"):
        optimizers.make_optimizer("adam", 0.1)
    with pytest.raises(ValueError, match="no schedule 'linear'"):
        optimizers.make_schedule("linear", 0.1, 10)


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
