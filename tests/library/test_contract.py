"""What every method promises: transformations of JAX, wrappers, dtypes, checkpoints, metrics."""

import functools
import json
import re
from pathlib import Path

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import arsam_jax
from tests.methods import METHODS, every_method
from tests.problem import (
    count_gradients,
    example_index,
    example_loss_fn,
    loss_fn,
    make_batch,
    make_params,
    make_step,
    pick,
    stack,
    train,
)

RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())
BASE = optax.sgd(0.05, momentum=0.9)
WEAK = jnp.array(0.7)  # Made without x64: float32, and weakly typed.

all_methods = pytest.mark.parametrize("name", METHODS)
methods = pytest.mark.parametrize("name", every_method())
# These five have a kept tree, keys, masks, selected examples and gradients of two mini-batches.
FIVE = ("arsam", "budgeted_m_sam", "sparse_sam", "ausam", "sampa")
five_methods = pytest.mark.parametrize("name", every_method(FIVE))


@functools.cache
def make_tx(name):
    return optax.chain(METHODS[name].make(), BASE)


@functools.cache
def jitted_step(name):
    return jax.jit(make_step(make_tx(name)))


def train_jitted(name, steps, **kwargs):
    return train(make_tx(name), steps, step=jitted_step(name), **kwargs)


def assert_bits_equal(a, b):
    chex.assert_trees_all_equal(a, b)
    chex.assert_trees_all_equal_dtypes(a, b)


def without_metrics(tree):
    def is_state(x):
        return isinstance(x, arsam_jax.SharpnessAwareState)

    return jax.tree.map(
        lambda x: x._replace(metrics=()) if is_state(x) else x, tree, is_leaf=is_state
    )


# Properties of the traced program or of shapes, for all methods.


@all_methods
def test_radius_zero_returns_the_given_arrays(name):
    """The updates are not only equal to the gradients: the program has no operation between."""
    tx = METHODS[name].make(rho=0.0)
    params, state = make_params(), tx.init(make_params())
    grads = jax.grad(loss_fn)(params, make_batch(0))
    program = jax.make_jaxpr(lambda g: tx.update(g, state, params, grad_fn=lambda p: p)[0])(grads)
    assert program.jaxpr.outvars == program.jaxpr.invars


@all_methods
def test_float32_programs_stay_float32_under_x64(name, x64):
    """No constant, draw or counter takes the wide default dtype."""
    tx, params, batch = METHODS[name].make(), make_params(), make_batch(0)
    state = tx.init(params)
    program = str(jax.make_jaxpr(make_step(tx))(params, state, batch))
    assert not re.findall(r"\b[fu]64\[[^\]]+\]", program)
    dtypes = {x.dtype for x in jax.tree.leaves(state)}
    assert not {jnp.dtype("float64"), jnp.dtype("int64")} & dtypes


@all_methods
def test_shapes_and_dtypes_are_fixed_for_weakly_typed_parameters(name, x64):
    assert WEAK.weak_type
    tx, params = METHODS[name].make(), make_params() | {"scale": WEAK}
    state = tx.init(params)
    after = jax.eval_shape(make_step(tx), params, state, make_batch(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, (params, state))


@all_methods
def test_shapes_and_dtypes_are_fixed_in_mixed_trees_with_empty_leaves(name, x64):
    tx, params = METHODS[name].make(), make_params() | {"nothing": jnp.zeros((0, 3), jnp.float32)}
    params |= {"kernel": params["kernel"].astype(jnp.bfloat16)}
    params |= {"scale": params["scale"].astype(jnp.float16)}
    state = tx.init(params)
    after = jax.eval_shape(make_step(tx), params, state, make_batch(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, (params, state))


@all_methods
def test_init_accepts_shapes(name):
    """Like ``optax.adam``, it returns arrays, which do not depend on values of the parameters."""
    tx = METHODS[name].make()
    shapes = jax.eval_shape(make_params)
    expected = tx.init(make_params())
    assert_bits_equal(tx.init(shapes), expected)
    abstract = jax.eval_shape(tx.init, shapes)
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, expected)


@all_methods
def test_unknown_extra_args_are_ignored(name):
    tx = make_tx(name)

    def update(*args, **extra_args):
        return tx.update(*args, **extra_args, unknown=3, value=1.0, loss="x")

    with_more = optax.GradientTransformationExtraArgs(tx.init, update)
    args = make_params(), tx.init(make_params()), make_batch(0)
    programs = [str(jax.make_jaxpr(make_step(t))(*args)) for t in (tx, with_more)]
    assert programs[0] == programs[1]


@all_methods
def test_missing_grad_fn_and_params_are_explained(name):
    tx = make_tx(name)
    params = make_params()
    with pytest.raises(ValueError, match=r"(?s)grad_fn.*tx\.update\(.*grad_fn=grad_fn\)"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match=r"needs params: tx\.update\(grads, state, params"):
        tx.update(params, tx.init(params), grad_fn=lambda p: p)


@all_methods
def test_empty_params(name):
    tx = METHODS[name].make()
    extra_args = {"example_loss_fn": lambda p, b: b, "batch": jnp.ones(2)}
    extra_args |= {"grad_fn": lambda p: p, "previous_grad_fn": lambda p: p}
    extra_args |= {"example_index": jnp.arange(2), "direction": {}}
    updates, _ = jax.eval_shape(lambda s: tx.update({}, s, {}, **extra_args), tx.init({}))
    assert updates == {}


@pytest.mark.parametrize("wrapper", ["apply_if_finite", "schedule_free", "multi_steps"])
@methods
def test_wrappers_of_optax_forward_all_arguments(name, wrapper):
    tx = {
        "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
        "schedule_free": lambda tx: optax.contrib.schedule_free(tx, learning_rate=0.05),
        "multi_steps": lambda tx: optax.MultiSteps(tx, every_k_schedule=2),
    }[wrapper](make_tx(name))
    params, state = make_params(), tx.init(make_params())
    with jax.numpy_dtype_promotion("standard"):  # In MultiSteps float32 is divided by int32.
        after = jax.eval_shape(make_step(tx), params, state, make_batch(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, (params, state))


# Properties of compiled steps.


@five_methods
def test_jitted_step_equals_eager_step(name):
    tx = make_tx(name)
    eager = train(tx, 2, step=make_step(tx))
    chex.assert_trees_all_close(train_jitted(name, 2), eager, rtol=1e-4, atol=1e-5)


@methods
def test_results_are_those_recorded_earlier(name):
    """Bias and scale after 8 steps, as recorded when the method was added or at commit c26505f."""
    params, _ = train_jitted(name, 8)
    found = [*params["bias"], params["scale"]]
    np.testing.assert_allclose(found, RECORDED[name], rtol=1e-4, atol=1e-5)


@methods
def test_non_finite_gradients_change_only_counters_keys_and_metrics(name):
    """Over six steps in a row, so that every mask is due."""
    params, opt_state = train_jitted(name, 7)
    before = arsam_jax.get_state(opt_state)
    for i in range(6):
        bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), make_batch(i))
        _, opt_state = jitted_step(name)(params, opt_state, bad)
    after = arsam_jax.get_state(opt_state)
    assert after.step == before.step + 6
    was_sampled = after.metrics.num_sampled > before.metrics.num_sampled
    assert was_sampled or name == "ae_sam"  # It compares the norm, here NaN, with a threshold.
    assert_bits_equal(after.probe, before.probe)
    assert_bits_equal(after.correction, before.correction)
    assert_bits_equal(after.radius, before.radius)
    for field in ("ratio", "ratio_rho", "ema_ratio", "mean", "deviation"):
        kept, expected = (getattr(state.sampling, field, ()) for state in (after, before))
        assert_bits_equal(kept, expected)


@methods
def test_draws_do_not_depend_on_x64(name, x64):
    tx, params, batch = METHODS[name].make(), make_params(), make_batch(0)

    def first_steps():
        first = state = tx.init(params)
        step = jax.jit(make_step(tx))
        for _ in range(2):
            _, state = step(params, state, batch)
        return jax.device_get((first.probe, state.probe, state.metrics.sampled))

    if any(x.dtype == jnp.uint32 for x in jax.tree.leaves(tx.init(params))):  # It has a key.
        wide = first_steps()
        jax.config.update("jax_enable_x64", False)
        chex.assert_trees_all_close(wide, first_steps(), rtol=1e-5, atol=1e-6)


@five_methods
def test_donated_buffers_are_reused_by_one_compiled_program(name):
    tx = make_tx(name)
    step = jax.jit(make_step(tx), donate_argnums=(0, 1))
    start = params, opt_state = make_params(), jax.jit(tx.init)(make_params())
    types = jax.tree.map(jax.typeof, start)
    for i in range(12):
        params, opt_state = step(params, opt_state, make_batch(i))
        assert jax.tree.map(jax.typeof, (params, opt_state)) == types
    assert step._cache_size() == 1
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(opt_state))
    assert all(x.is_deleted() for x in jax.tree.leaves(start[0]))

    donated, expected = (params, opt_state), train_jitted(name, 12)
    assert_bits_equal(without_metrics(donated), without_metrics(expected))
    metrics = (arsam_jax.get_metrics(state) for _, state in (donated, expected))
    chex.assert_trees_all_close(*metrics, rtol=1e-5)  # XLA sums norms in another order.


@five_methods
def test_scan_equals_the_loop(name):
    tx, params = make_tx(name), make_params()
    step = make_step(tx)
    scanned, _ = jax.lax.scan(
        lambda carry, batch: (step(*carry, batch), None),
        (params, tx.init(params)),
        stack([make_batch(i) for i in range(12)]),
    )
    chex.assert_trees_all_close(scanned, train_jitted(name, 12), rtol=1e-4, atol=1e-5)


@five_methods
def test_vmap_over_models_equals_separate_runs(name):
    tx = make_tx(name)
    models = [jax.tree.map(lambda x, i=i: x * (1 + 0.1 * i), make_params()) for i in range(2)]
    params = stack(models)
    step = jax.jit(jax.vmap(make_step(tx), in_axes=(0, 0, None)))
    together = train(tx, 8, params, opt_state=jax.vmap(tx.init)(params), step=step)
    separate = stack([train_jitted(name, 8, params=model) for model in models])
    chex.assert_trees_all_close(together, separate, rtol=1e-4, atol=1e-5)


@methods
def test_vmap_over_halves_of_the_batch_equals_the_whole_batch(name):
    """Where the method perturbs by the examples of a device, both get the whole batch."""
    tx, is_local = make_tx(name), METHODS[name].method.is_local
    mapped = jax.vmap(make_step(tx, axis_name="batch"), in_axes=(None, None, 0), axis_name="batch")
    step = jax.jit(mapped)

    def on_halves(params, opt_state, batch):
        if is_local:
            halves = stack([batch, batch])
        else:
            halves = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), batch)
        result = step(params, opt_state, halves)
        assert_bits_equal(pick(result, 0), pick(result, 1))
        return pick(result, 0)

    result = train(tx, 6, step=on_halves)
    if name == "ausam":  # Each half draws its own examples.
        chex.assert_tree_all_finite(result)
    else:
        chex.assert_trees_all_close(result, train_jitted(name, 6), rtol=1e-4, atol=1e-5)


@five_methods
def test_mixed_dtypes_give_about_the_results_of_float64(name, x64):
    tx = make_tx(name)
    wide = make_params(jnp.float64) | {"nothing": jnp.zeros((0, 3))}
    narrow = {"kernel": jnp.bfloat16, "bias": jnp.float32, "scale": jnp.float16}
    mixed = wide | {leaf: wide[leaf].astype(dtype) for leaf, dtype in narrow.items()}
    results = []
    for params in (wide, mixed):
        after = train_jitted(name, 8, params=params)
        chex.assert_trees_all_equal_shapes_and_dtypes((params, tx.init(params)), after)
        chex.assert_tree_all_finite(after)
        results.append(jax.tree.map(lambda x: x.astype(jnp.float64), after[0]))
    chex.assert_trees_all_close(*results, atol=0.1)


@methods
def test_executed_gradients_are_those_of_the_sampled_steps(name):
    counts, opt_state = count_gradients(make_tx(name), 12)
    sampled = int(arsam_jax.get_metrics(opt_state).num_sampled)
    assert sum(counts) == 12 + METHODS[name].evaluations * sampled
    assert 0 < sampled <= 12


@methods
def test_value_fn_replaces_grad_fn(name):
    tx, params, batch = make_tx(name), make_params(), make_batch(0)
    args = jax.grad(loss_fn)(params, batch), tx.init(params), params
    extra_args = {"example_loss_fn": example_loss_fn, "batch": batch}
    extra_args["example_index"] = example_index(batch)
    extra_args["previous_grad_fn"] = lambda p: jax.grad(loss_fn)(p, batch)
    extra_args["direction"] = params
    by_value = tx.update(*args, value_fn=lambda p: loss_fn(p, batch), **extra_args)
    by_grad = tx.update(*args, grad_fn=lambda p: jax.grad(loss_fn)(p, batch), **extra_args)
    assert_bits_equal(by_value, by_grad)


@methods
def test_injected_hyperparameters_give_the_same_results(name):
    tx = optax.chain(METHODS[name].injected(), BASE)
    params, opt_state = train(tx, 8)
    assert float(opt_state[0].hyperparams["rho"]) == pytest.approx(0.1)
    chex.assert_trees_all_close(params, train_jitted(name, 8)[0], rtol=1e-5, atol=3e-6)


@methods
def test_checkpoints_continue_bit_for_bit(name, tmp_path):
    expected = train_jitted(name, 20)
    saved = train_jitted(name, 9)
    target = make_params(), make_tx(name).init(make_params())
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", saved)
        checkpointer.wait_until_finished()
        by_orbax = checkpointer.restore(tmp_path / "state", target)
    by_flax = flax.serialization.from_bytes(target, flax.serialization.to_bytes(saved))
    for params, opt_state in (by_orbax, jax.tree.map(jnp.asarray, by_flax)):
        continued = train_jitted(name, 11, params=params, first=9, opt_state=opt_state)
        assert_bits_equal(continued, expected)


@methods
def test_metrics_describe_the_step(name):
    _, opt_state = train_jitted(name, 1)
    metrics = arsam_jax.get_metrics(opt_state)
    assert metrics == arsam_jax.get_state(opt_state).metrics
    assert metrics.rho > 0
    assert metrics.grad_norm == metrics.correction_norm == metrics.cosine == 0

    tx, params = make_tx(name), make_params()
    step = jax.jit(make_step(tx, measure=True))
    _, opt_state = step(params, tx.init(params), make_batch(0))
    measured = arsam_jax.get_metrics(opt_state)
    chex.assert_trees_all_equal(measured[:3], metrics[:3])
    norm = optax.tree.norm(jax.grad(loss_fn)(params, make_batch(0)))
    np.testing.assert_allclose(measured.grad_norm, norm, rtol=1e-5)
    assert (measured.perturbed_grad_norm > 0) == bool(measured.sampled)
    g, g_sam, psf = measured.grad_norm, measured.perturbed_grad_norm, measured.correction_norm
    if measured.sampled:
        expected = g**2 + g_sam**2 - 2 * g * g_sam * measured.cosine
        np.testing.assert_allclose(psf**2, expected, rtol=1e-3, atol=1e-5 * g**2)
