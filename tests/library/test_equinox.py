"""Equinox: BatchNorm moves once, dropout masks agree, frozen leaves stay."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import arsam_jax

pytest.importorskip("equinox")
import equinox as eqx

from arsam_jax.equinox import eqx_value_and_grad

X = jnp.asarray(np.random.default_rng(0).normal(size=(16, 6)), jnp.float32)
Y = jnp.asarray(np.random.default_rng(1).normal(size=(16, 1)), jnp.float32)

pytestmark = pytest.mark.usefixtures("standard_promotion")


class Net(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear
    steps: jax.Array  # not trained: an integer

    def __init__(self, key):
        first, last = jax.random.split(key)
        self.first = eqx.nn.Linear(6, 8, key=first)
        self.norm = eqx.nn.BatchNorm(8, axis_name="batch", mode="ema", momentum=0.9)
        self.dropout = eqx.nn.Dropout(0.5)
        self.last = eqx.nn.Linear(8, 1, key=last)
        self.steps = jnp.array(3)

    def __call__(self, x, state, key):
        x, state = self.norm(self.first(x), state)
        return self.last(self.dropout(jax.nn.relu(x), key=key)), state


def loss_fn(model, state, x, y, key):
    keys = jax.random.split(key, len(x))
    mapped = jax.vmap(model, in_axes=(0, None, 0), out_axes=(0, None), axis_name="batch")
    output, state = mapped(x, state, keys)
    return jnp.mean((output - y) ** 2), state


def test_a_step_is_that_of_sam_with_one_dropout_mask_and_one_update_of_the_statistics():
    model, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    tx = optax.chain(arsam_jax.sam(0.3), optax.sgd(0.05))
    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    key = jax.random.key(1)

    @eqx.filter_jit
    def step(model, state, opt_state):
        (loss, state), grads, params, grad_fn = eqx_value_and_grad(
            loss_fn, model, state, X, Y, key, has_aux=True
        )
        updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)
        return eqx.apply_updates(model, updates), state, loss, (grads, params, grad_fn(params))

    after, moved, loss, (grads, params, again) = step(model, state, opt_state)
    chex.assert_trees_all_close(again, grads, rtol=1e-5, atol=1e-7)

    (expected_loss, expected_state), g = eqx.filter_value_and_grad(loss_fn, has_aux=True)(
        model, state, X, Y, key
    )
    norm = optax.tree.norm(g)
    perturbed = eqx.apply_updates(model, jax.tree.map(lambda x: 0.3 * x / norm, g))
    g_sam = eqx.filter_grad(loss_fn, has_aux=True)(perturbed, state, X, Y, key)[0]
    expected = eqx.apply_updates(model, jax.tree.map(lambda x: -0.05 * x, g_sam))
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    arrays = [eqx.filter(tree, eqx.is_array) for tree in (after, expected)]
    chex.assert_trees_all_close(*arrays, rtol=1e-4, atol=1e-6)
    leaves = [jax.tree.leaves(tree) for tree in (moved, expected_state)]
    chex.assert_trees_all_close(*leaves, rtol=1e-5)
    arsam_jax.check_wiring(tx, grads, params, grad_fn=lambda p: grads)


def test_what_wrt_leaves_out_is_frozen():
    model, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    wrt = jax.tree.map(lambda _: False, model)
    wrt = eqx.tree_at(lambda m: (m.last.weight, m.last.bias), wrt, (True, True))
    tx = optax.chain(arsam_jax.arsam(0.1, warmup_steps=2), optax.adamw(0.01))
    opt_state = tx.init(eqx.filter(model, wrt))
    before = model

    @eqx.filter_jit
    def step(model, state, opt_state, key):
        (_, state), grads, params, grad_fn = eqx_value_and_grad(
            loss_fn, model, state, X, Y, key, has_aux=True, wrt=wrt
        )
        updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)
        return eqx.apply_updates(model, updates), state, opt_state

    for i in range(4):
        model, state, opt_state = step(model, state, opt_state, jax.random.key(i))
    chex.assert_trees_all_equal(model.first.weight, before.first.weight)
    assert not np.array_equal(model.last.weight, before.last.weight)


def test_a_grad_fn_of_the_whole_model_and_integer_leaves_are_explained():
    model, _ = eqx.nn.make_with_state(Net)(jax.random.key(0))
    tx = arsam_jax.sam(0.1)
    with pytest.raises(ValueError, match=r"eqx\.is_inexact_array"):
        tx.init(eqx.filter(model, eqx.is_array))
    params = eqx.filter(model.first, eqx.is_inexact_array)
    params = eqx.tree_at(lambda m: m.bias, params, None)
    state = tx.init(params)
    with pytest.raises((TypeError, AttributeError)) as caught:
        tx.update(params, state, params, grad_fn=lambda model: model.bias + 1)
    assert any("eqx_value_and_grad" in note for note in caught.value.__notes__)
