"""optax's wrappers around the link: which forward ``grad_fn``, and how the others fail."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import arsam_jax

PARAMS = {"w": jnp.array([1.0, -2.0])}


def loss_fn(params):
    return jnp.sum(jnp.square(params["w"]) ** 2)


grad_fn = jax.grad(loss_fn)


def make_chain():
    return optax.chain(arsam_jax.sam(0.1), optax.sgd(0.01))


def update(tx, **extra_args):
    return jax.jit(lambda state: tx.update(grad_fn(PARAMS), state, PARAMS, **extra_args)[0])(
        tx.init(PARAMS)
    )


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.named_chain(("first", tx)),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.conditionally_transform(tx, lambda step, **_: step < 5),
        lambda tx: optax.conditionally_mask(tx, lambda step, **_: step < 5),
        lambda tx: optax.masked(tx, {"w": True}),
        lambda tx: optax.with_extra_args_support(tx),
    ],
    ids=["named_chain", "if_finite", "cond_transform", "cond_mask", "masked", "extra_args"],
)
def test_wrappers_that_forward_grad_fn(wrap):
    chex.assert_trees_all_close(
        update(wrap(make_chain()), grad_fn=grad_fn), update(make_chain(), grad_fn=grad_fn)
    )


@pytest.mark.parametrize(
    "wrap", [optax.contrib.mechanize, lambda tx: optax.contrib.schedule_free(tx, 0.01)]
)
def test_wrappers_that_change_the_step_still_forward_grad_fn(wrap):
    chex.assert_tree_all_finite(update(wrap(make_chain()), grad_fn=grad_fn))


def test_multi_steps_in_a_chain_loses_grad_fn_and_the_error_says_so():
    multi_steps = optax.MultiSteps(make_chain(), 2).gradient_transformation()
    with pytest.raises(ValueError, match="does not forward extra arguments"):
        update(optax.chain(multi_steps), grad_fn=grad_fn)


def test_multi_steps_around_a_chain_needs_a_grad_fn_of_all_micro_batches_as_documented():
    batches = jnp.array([[1.0, 0.0], [0.0, 3.0]])

    def loss_on(batch, params):
        return jnp.sum(batch @ params["w"]) ** 2

    def run(make_grad_fn):
        tx = optax.MultiSteps(make_chain(), 2)
        params, state = PARAMS, tx.init(PARAMS)
        with jax.numpy_dtype_promotion("standard"):  # optax divides float32 by int32 here
            for batch in batches:
                grads = jax.grad(lambda p, b=batch: loss_on(b, p))(params)
                updates, state = tx.update(grads, state, params, grad_fn=make_grad_fn(batch))
                params = optax.apply_updates(params, updates)
        return params

    def mean_grad_fn(params):
        return jax.grad(lambda p: (loss_on(batches[0], p) + loss_on(batches[1], p)) / 2)(params)

    expected = optax.apply_updates(
        PARAMS,
        make_chain().update(
            mean_grad_fn(PARAMS), make_chain().init(PARAMS), PARAMS, grad_fn=mean_grad_fn
        )[0],
    )
    chex.assert_trees_all_close(run(lambda batch: mean_grad_fn), expected, rtol=1e-6)
    of_last = run(lambda batch: jax.grad(lambda p: loss_on(batch, p)))
    assert of_last["w"][0] == PARAMS["w"][0]  # what the first micro-batch says is lost


def test_flatten_gives_grad_fn_a_flat_vector_and_fails_in_it():
    with pytest.raises(TypeError, match="indexing"):
        update(optax.flatten(make_chain()), grad_fn=grad_fn)


def test_backtracking_linesearch_works_with_value_fn_only():
    tx = optax.chain(make_chain(), optax.scale_by_backtracking_linesearch(5))
    linesearch = {"value": loss_fn(PARAMS), "grad": grad_fn(PARAMS), "value_fn": loss_fn}
    chex.assert_tree_all_finite(update(tx, **linesearch))


def test_two_links_need_to_be_asked_for_one_by_one():
    state = optax.chain(make_chain(), arsam_jax.sam(0.1)).init(PARAMS)
    with pytest.raises(ValueError, match="exactly one sharpness-aware state, found 2"):
        arsam_jax.get_metrics(state)
    with pytest.raises(ValueError, match="found 0"):
        arsam_jax.get_metrics(optax.sgd(0.1).init(PARAMS))
    assert arsam_jax.get_metrics(state[0]).num_sampled == 0
