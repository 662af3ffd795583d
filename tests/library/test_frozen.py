"""Frozen leaves: the ways in which they stay bit-equal on every kind of step, and a wrong one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import arsam_jax

pytestmark = pytest.mark.usefixtures("standard_promotion")  # for optax.adamw

X = jnp.asarray(np.random.default_rng(0).normal(size=(16, 6)), jnp.float32)
PARAMS = {
    "base": {"kernel": jnp.ones((6, 8)) / 8, "bias": jnp.zeros(8)},
    "head": {"kernel": jnp.ones((8, 1)), "bias": jnp.zeros(1)},
}
IS_FROZEN = {"base": True, "head": False}


def loss_fn(params):
    hidden = jnp.tanh(X @ params["base"]["kernel"] + params["base"]["bias"][None])
    output = hidden @ params["head"]["kernel"] + params["head"]["bias"][None]
    return jnp.mean((output[:, 0] - jnp.sin(X.sum(1))) ** 2)


def arsam(**kwargs):
    return arsam_jax.arsam(0.1, 0.5, segment_length=6, **kwargs)


def train(tx, trained, loss_fn, steps=18):
    """Trains, and says which kinds of steps there were."""
    grad_fn = jax.grad(loss_fn)

    @jax.jit
    def step(trained, state):
        updates, state = tx.update(grad_fn(trained), state, trained, grad_fn=grad_fn)
        return optax.apply_updates(trained, updates), state

    state, kinds = tx.init(trained), set()
    for _ in range(steps):
        trained, state = step(trained, state)
        age = int(arsam_jax.get_state(state).age)
        kinds.add("sampled" if age == 0 else "reuse" if age <= 2 else "plain")
    assert kinds == {"sampled", "reuse", "plain"}
    return trained, state


def assert_base_is_frozen(params):
    for name, x in PARAMS["base"].items():
        np.testing.assert_array_equal(params["base"][name], x)
    assert not np.array_equal(params["head"]["kernel"], PARAMS["head"]["kernel"])


def num_elements(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_the_trained_leaves_alone_are_differentiated():
    tx = optax.chain(arsam(), optax.adamw(0.01))
    base, head = {"base": PARAMS["base"]}, {"head": PARAMS["head"]}
    head, state = train(tx, head, lambda head: loss_fn(base | head))
    assert_base_is_frozen(base | head)
    assert num_elements(state) < num_elements(tx.init(PARAMS)) / 3


def test_a_tree_with_none_in_place_of_frozen_leaves():
    def keep(flag):
        return jax.tree.map(lambda is_frozen, x: x if is_frozen == flag else None, mask, PARAMS)

    def combine(trained):
        return jax.tree.map(
            lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda x: x is None
        )

    mask = {"base": {"kernel": True, "bias": True}, "head": {"kernel": False, "bias": False}}
    frozen, trained = keep(True), keep(False)
    tx = optax.chain(arsam(), optax.adamw(0.01))
    trained, _ = train(tx, trained, lambda trained: loss_fn(combine(trained)))
    assert_base_is_frozen(combine(trained))


def test_a_mask_behind_the_optimizer():
    freeze = optax.masked(optax.set_to_zero(), IS_FROZEN)
    params, _ = train(optax.chain(arsam(), optax.adamw(0.01), freeze), PARAMS, loss_fn)
    assert_base_is_frozen(params)


def test_a_mask_before_the_link_does_not_freeze_and_check_wiring_says_so():
    freeze = optax.masked(optax.set_to_zero(), IS_FROZEN)
    tx = optax.chain(freeze, arsam(), optax.adamw(0.01, weight_decay=0))
    params, _ = train(tx, PARAMS, loss_fn)
    assert not np.array_equal(params["base"]["kernel"], PARAMS["base"]["kernel"])
    grad_fn = jax.grad(loss_fn)
    with pytest.raises(ValueError, match=r"are 0 at .*\['base'\]\['kernel'\]\. Frozen"):
        arsam_jax.check_wiring(tx, grad_fn(PARAMS), PARAMS, grad_fn=grad_fn)


def test_masked_around_the_link_says_how_to_freeze():
    tx = optax.masked(optax.chain(arsam(), optax.sgd(0.1)), {"base": False, "head": True})
    with pytest.raises(
        ValueError, match=r"To freeze parameters, call init and update with the others"
    ):
        tx.update(jax.grad(loss_fn)(PARAMS), tx.init(PARAMS), PARAMS, grad_fn=jax.grad(loss_fn))
