"""Probes: where they evaluate gradients, what those cost, and which calls they refuse."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import arsam_jax
from arsam_jax import microbatches, probe, sharpness_aware, sparse
from arsam_jax.ascent import normalize
from tests.methods import METHODS
from tests.problem import (
    example_loss_fn,
    loss_fn,
    make_batch,
    make_params,
    make_step,
    matrix_products,
    update_with,
)
from tests.reference import unit

pytestmark = pytest.mark.usefixtures("x64")


def test_gam_of_a_quadratic_looks_for_the_largest_gradient_norm():
    """‖∇L‖ = ‖H w‖ grows along H g, which w_2 is moved along, not along g as in SAM."""
    h, w, seen = jnp.asarray([1.0, 4.0]), jnp.asarray([2.0, 1.0]), []
    tx = arsam_jax.gam(0.5, grad_rho=0.01)
    tx.update(h * w, tx.init(w), w, grad_fn=lambda w: (seen.append(w), h * w)[1])
    np.testing.assert_allclose(seen[1] - w, 0.5 * unit(np.asarray([2.0, 16.0])), rtol=1e-9)


def test_sampas_gradients_do_not_wait_for_each_other():
    """Where each is evaluated is known before either is: both points come from the state."""
    params = jnp.ones(3)
    tx = arsam_jax.sampa(0.1, 0.1)
    state = tx.init(params)
    _, state = tx.update(params, state, params, grad_fn=jnp.sin, previous_grad_fn=jnp.sin)

    def points(params, state, scale):
        seen = []
        grad_fn = lambda w: (seen.append(w), scale * w)[1]  # noqa: E731
        tx.update(params, state, params, grad_fn=grad_fn, previous_grad_fn=grad_fn)
        return seen

    chex.assert_trees_all_equal(points(params, state, 1.0), points(params, state, -7.0))


def test_rw_sam_weighs_alike_whatever_the_loss_computes_in():
    """The weights are read off g_A: example i alone moves coordinate i of the parameters."""
    size = 64
    slopes = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2, size), jnp.float32)

    def perturbed(compute_dtype):
        def losses(w, batch):
            # sin(x) + 3 rounds to 1/64 in bfloat16, a step of 0.01 moves it by less
            return (3 + jnp.sin(slopes.astype(compute_dtype) * w.astype(compute_dtype))).astype(
                jnp.float32
            )

        seen = []
        tx = arsam_jax.rw_sam(1.0, inverse_temperature=2.0)
        w = jnp.full(size, 0.1, jnp.float32)
        extra = {"example_loss_fn": losses, "batch": jnp.zeros(size)}
        tx.update(w, tx.init(w), w, grad_fn=lambda v: (seen.append(v), v)[1], **extra)
        return seen[0] - w

    wide, narrow = perturbed(jnp.float32), perturbed(jnp.bfloat16)
    assert np.corrcoef(wide, narrow)[0, 1] > 0.99


# Costs


def test_methods_that_leave_the_gradient_unread_do_not_pay_for_it():
    """A gradient of two layers is two matrix products forward and three backward."""
    assert matrix_products(optax.with_extra_args_support(optax.sgd(0.1))) == 5
    assert matrix_products(arsam_jax.momentum_sam(0.1)) == 5
    assert matrix_products(arsam_jax.sampa(0.1, 0.1)) == 10
    assert matrix_products(arsam_jax.m_sam(0.1, 1)) == 10
    assert matrix_products(arsam_jax.rw_sam(0.1)) == 13  # two gradients and a forward derivative
    assert matrix_products(arsam_jax.rw_sam(0.1, delta=0.01)) == 12  # and a forward pass


def test_microbatch_gradients_that_are_there_are_not_taken_again():
    sampled = arsam_jax.budgeted_sam(0.1, share=0.25, num_microbatches=2)
    assert matrix_products(optax.with_extra_args_support(optax.sgd(0.1)), num_microbatches=2) == 5
    assert matrix_products(sampled) == 15  # of which 10 on sampled steps alone
    assert matrix_products(sampled, num_microbatches=2) == 10
    assert matrix_products(arsam_jax.m_sam(0.1, 2), num_microbatches=2) == 10


@pytest.mark.parametrize("num_microbatches", [1, 2, 16])
def test_microbatch_gradients_are_those_of_m_sam(num_microbatches):
    params, batch = make_params(), make_batch(0)

    def with_aux(params, batch):
        return example_loss_fn(params, batch), batch[1].sum()

    take = microbatches.value_and_grad(with_aux, num_microbatches, has_aux=True)
    (loss, aux), grads, of_each = jax.jit(take)(params, batch)
    np.testing.assert_allclose(loss, loss_fn(params, batch), atol=1e-6)
    chex.assert_trees_all_close(grads, jax.grad(loss_fn)(params, batch), atol=1e-6)
    for k in range(num_microbatches):
        part = jax.tree.map(lambda x, k=k: x[k::num_microbatches], batch)
        one = jax.tree.map(lambda x, k=k: x[k], of_each)
        chex.assert_trees_all_close(one, jax.grad(loss_fn)(params, part), atol=1e-6)
        np.testing.assert_allclose(aux[k], part[1].sum(), atol=1e-6)

    tx = arsam_jax.m_sam(0.1, num_microbatches)
    extra = {
        "grad_fn": lambda params: jax.grad(loss_fn)(params, batch),
        "example_loss_fn": example_loss_fn,
        "batch": batch,
    }
    given, taken = (
        tx.update(grads, tx.init(params), params, **extra, **more)[0]
        for more in ({"microbatch_grads": of_each}, {})
    )
    chex.assert_trees_all_close(given, taken, atol=1e-6)


# Wrong calls


def test_microbatch_gradients_of_another_cut_are_refused():
    batch = make_batch(0)
    _, grads, of_two = microbatches.value_and_grad(example_loss_fn, 2)(make_params(), batch)
    extra = {"example_loss_fn": example_loss_fn, "batch": batch}
    for wrong in (of_two, grads):
        with pytest.raises(ValueError, match=r"microbatch_grads must .*num_microbatches = 4"):
            update_with(arsam_jax.m_sam(0.1, 4), **extra, microbatch_grads=wrong)
    with pytest.raises(ValueError, match="num_microbatches must divide the batch size 16, got 3"):
        microbatches.value_and_grad(example_loss_fn, 3)(make_params(), batch)
    with pytest.raises(ValueError, match="one loss for each example"):
        microbatches.value_and_grad(loss_fn, 2)(make_params(), batch)


def test_sampa_says_what_it_needs():
    tx, params = arsam_jax.sampa(0.1, 0.1), jnp.ones(2)
    update = functools.partial(tx.update, params, tx.init(params), params, grad_fn=jnp.sin)
    with pytest.raises(ValueError, match=r"(?s)needs previous_grad_fn.*previous_grad_fn=previous"):
        update()
    with pytest.raises(TypeError, match=r"^previous_grad_fn must be a function of params, got 3"):
        update(previous_grad_fn=3)
    with pytest.raises(ValueError, match=r"^previous_grad_fn\(params\) must return gradients only"):
        update(previous_grad_fn=lambda w: (w.sum(), w))


@pytest.mark.parametrize("which", ["grad_fn", "previous_grad_fn"])
@pytest.mark.parametrize("interpolation", [0, 0.2, 1])
def test_sampa_never_keeps_a_bad_gradient(which, interpolation):
    tx, params = arsam_jax.sampa(0.1, 0.1, interpolation=interpolation), jnp.ones(3)
    functions = {"grad_fn": jnp.sin, "previous_grad_fn": jnp.sin}
    _, state = tx.update(params, tx.init(params), params, **functions)
    bad = functions | {which: lambda w: w * jnp.asarray([1.0, jnp.inf, 1.0])}
    updates, after = tx.update(params, state, params, **bad)
    assert not jnp.isfinite(jnp.asarray(updates)).all()
    chex.assert_trees_all_equal(after.probe, state.probe)


@pytest.mark.parametrize(
    "tx",
    [
        arsam_jax.esam(0.1),
        arsam_jax.m_sam(0.1, 2),
        arsam_jax.rw_sam(0.1),
        arsam_jax.k_sam(0.1),
        arsam_jax.ausam(0.1, 16, 1),
        arsam_jax.sparse_sam(0.1),
    ],
    ids=["esam", "m_sam", "rw_sam", "k_sam", "ausam", "sparse_sam"],
)
def test_missing_or_wrong_examples_are_explained(tx):
    batch = make_batch(0)
    with pytest.raises(ValueError, match=r"(?s)needs example_loss_fn.*example_loss_fn=example"):
        update_with(tx, batch=batch)
    with pytest.raises(ValueError, match="needs batch"):
        update_with(tx, example_loss_fn=lambda p, b: b[1])
    with pytest.raises(ValueError, match="one loss for each example"):
        update_with(tx, example_loss_fn=lambda p, b: b[1].mean(), batch=batch)
    with pytest.raises(ValueError, match="same first axis"):
        update_with(tx, example_loss_fn=lambda p, b: b[1], batch=(batch[0], batch[1][:3]))
    with pytest.raises(ValueError, match="batch must hold at least one example, got 0"):
        update_with(tx, example_loss_fn=lambda p, b: b[1], batch=(batch[0][:0], batch[1][:0]))


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.needs_examples])
def test_batches_may_be_numpy_arrays_in_a_closure(name):
    tx = METHODS[name].make()
    params, batch = make_params(), jax.tree.map(np.asarray, make_batch(0))
    extra = {"example_loss_fn": example_loss_fn, "batch": batch, "example_index": np.arange(16)}

    @jax.jit
    def update(params):
        grads = jax.grad(loss_fn)(params, batch)
        return tx.update(grads, tx.init(params), params, grad_fn=lambda p: grads, **extra)[0]

    chex.assert_tree_all_finite(update(params))


def test_micro_batches_on_devices_refuse_an_ascent_with_state():
    direction = optax.chain(normalize(), sparse.fisher_mask(0.5))
    tx = sharpness_aware(0.1, probe=probe.microbatched(2, direction))
    step = jax.pmap(make_step(tx, axis_name="batch"), axis_name="batch")
    params, state = jax.tree.map(
        lambda x: jnp.stack([x] * 8), (make_params(), tx.init(make_params()))
    )
    batch = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), make_batch(0))
    with pytest.raises(ValueError, match="an ascent without state"):
        step(params, state, batch)


def test_batches_that_do_not_divide_are_refused():
    extra = {"example_loss_fn": lambda p, b: b[1], "batch": make_batch(0)}
    with pytest.raises(ValueError, match="num_microbatches must divide the batch size 16, got 3"):
        update_with(arsam_jax.m_sam(0.1, 3), **extra)
    too_many = arsam_jax.sparse_sam(0.1, mask=lambda s: sparse.fisher_mask(s, num_examples=17))
    with pytest.raises(ValueError, match="at most 16, the examples of batch, got 17"):
        update_with(too_many, **extra)
