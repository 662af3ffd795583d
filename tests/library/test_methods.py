"""The list of methods: its facts are true. Evaluations are counted in the contract suite."""

import jax
import jax.numpy as jnp
import pytest

import arsam_jax
from arsam_jax.methods import METHODS
from tests.methods import METHODS as CASES
from tests.problem import example_index, example_loss_fn, loss_fn, make_batch, make_params

pytestmark = pytest.mark.parametrize("name", METHODS)


def update(name, grads, extra_args):
    tx, params = CASES[name].make(), make_params()
    return tx.update(grads, tx.init(params), params, **extra_args)[0]


def all_extra_args():
    def grad_fn(params):
        return jax.grad(loss_fn)(params, make_batch(0))

    return {
        "grad_fn": grad_fn,
        "previous_grad_fn": grad_fn,
        "direction": make_params(),
        "example_loss_fn": example_loss_fn,
        "batch": make_batch(0),
        "example_index": example_index(make_batch(0)),
    }


def test_a_method_needs_the_extra_arguments_it_lists_and_no_others(name):
    extra_args = {
        n: v for n, v in all_extra_args().items() if n in ("grad_fn", *METHODS[name].needs)
    }
    jax.eval_shape(lambda grads: update(name, grads, extra_args), make_params())
    for missing in METHODS[name].needs:
        others = {n: v for n, v in extra_args.items() if n != missing}
        with pytest.raises((TypeError, ValueError), match=missing):
            jax.eval_shape(lambda grads, others=others: update(name, grads, others), make_params())


def test_the_clean_gradient_is_read_where_the_list_says_so(name):
    grads = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), make_params())
    emitted = update(name, grads, all_extra_args())
    is_finite = all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(emitted))
    assert is_finite != METHODS[name].reads_grads, "reads_grads of the list or of the probe"


def test_the_price_is_that_of_the_gradients_it_takes(name):
    """Those who take gradients of examples themselves do not ask ``grad_fn`` for them."""
    method = METHODS[name]
    if "batch" not in method.needs and method.gradients is not None:
        assert method.gradients == CASES[name].evaluations + method.reads_grads
    assert method.make is getattr(arsam_jax, name)
