"""Ensembles: a decision that does not depend on data keeps its ``lax.cond`` under ``vmap``."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import arsam_jax
from arsam_jax import radius
from tests.methods import METHODS, every_method
from tests.problem import BATCH, make_params, make_step

FOLLOWS_DATA = {name for name in METHODS if name.startswith("arsam")} | {"ae_sam"}


def trained(tx, axis_name=None):
    """``key -> (params, opt_state)`` of a run whose parameters and data depend on the key."""
    tx = optax.chain(tx, optax.sgd(0.05))
    step = make_step(tx)

    def one_step(params, opt_state, batch):
        if axis_name is None:
            return step(params, opt_state, batch)
        loss_fn = lambda p: jnp.mean(jnp.square(batch[0] @ p["kernel"]))  # noqa: E731
        grads, kwargs = jax.grad(loss_fn)(params), {"axis_name": axis_name}
        updates, opt_state = tx.update(
            grads, opt_state, params, grad_fn=jax.grad(loss_fn), **kwargs
        )
        return optax.apply_updates(params, updates), opt_state

    def run(key):
        params = jax.tree.map(lambda x: x * jax.random.uniform(key, minval=0.5), make_params())

        def body(carry, i):
            x = jax.random.normal(jax.random.fold_in(key, i), (BATCH, 5))
            return one_step(*carry, (x, jnp.sin(x.sum(1)))), None

        return jax.lax.scan(body, (params, tx.init(params)), jnp.arange(12, dtype=jnp.int32))[0]

    return run


def conds(function, *args):
    return str(jax.make_jaxpr(function)(*args)).count(" cond[")


KEYS = jax.random.split(jax.random.key(0), 3)


@pytest.mark.parametrize("name", every_method())
def test_a_decision_that_does_not_depend_on_data_keeps_its_cond(name):
    run = trained(METHODS[name].make())
    alone, together = conds(run, KEYS[0]), conds(jax.vmap(run), KEYS)
    assert together == (alone - 1 if name in FOLLOWS_DATA else alone)


@pytest.mark.parametrize(
    "rho", [radius.proportional_to_params(), radius.hold_ratio(0.3), lambda step: 0.1]
)
def test_separate_radii_of_the_members_keep_the_cond(rho):
    run = trained(arsam_jax.budgeted_sam(rho, share=0.25))
    assert conds(jax.vmap(run), KEYS) == conds(run, KEYS[0]) == 1


@pytest.mark.parametrize("name", ["arsam", "ae_sam"])
def test_the_axis_name_of_the_vmap_makes_the_members_decide_alike(name):
    run = trained(METHODS[name].make(), axis_name="seeds")
    together = jax.vmap(run, axis_name="seeds")
    assert conds(together, KEYS) == 1
    _, opt_state = together(KEYS)
    counts = np.asarray(arsam_jax.get_metrics(opt_state).num_sampled)
    assert counts[0] > 0
    assert (counts == counts[0]).all()


def test_the_members_of_an_ensemble_are_those_trained_alone():
    run = trained(arsam_jax.budgeted_sam(0.1, share=0.25))
    together = jax.jit(jax.vmap(run))(KEYS)[0]
    for i, key in enumerate(KEYS):
        alone = jax.jit(run)(key)[0]
        for x, y in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(x[i], y, rtol=1e-4, atol=1e-5)
