"""What every public transformation promises, whatever its parts."""

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
from tests.methods import METHODS
from tests.problem import (
    example_index,
    example_loss_fn,
    loss_fn,
    make_batch,
    make_params,
    make_step,
    train,
)

RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())

pytestmark = pytest.mark.parametrize("name", METHODS)


@functools.cache
def make_tx(name):
    return optax.chain(METHODS[name].make(), optax.sgd(0.05, momentum=0.9))


@functools.cache
def jitted_step(name):
    return jax.jit(make_step(make_tx(name)))


def train_jitted(name, steps, **kw):
    return train(make_tx(name), steps, step=jitted_step(name), **kw)


def assert_bits_equal(a, b):
    chex.assert_trees_all_equal(a, b)
    chex.assert_trees_all_equal_dtypes(a, b)


def without_metrics(tree):
    def is_state(x):
        return isinstance(x, arsam_jax.SharpnessAwareState)

    def strip(x):
        return x._replace(metrics=()) if is_state(x) else x

    return jax.tree.map(strip, tree, is_leaf=is_state)


def test_jitted_step_equals_eager_step(name):
    tx = make_tx(name)
    eager = train(tx, 3, step=make_step(tx))
    chex.assert_trees_all_close(train_jitted(name, 3), eager, rtol=1e-4, atol=1e-5)


def test_what_was_recorded_before_the_core_was_rebuilt(name):
    """Bias and scale after 8 steps, of commit c26505f, or of that which brought a younger method.

    Where they were recorded they are equal to the bit; other CPUs and versions of JAX round.
    """
    params, _ = train_jitted(name, 8)
    found = [*params["bias"], params["scale"]]
    np.testing.assert_allclose(found, RECORDED[name], rtol=1e-4, atol=1e-5)


def test_a_step_that_is_not_finite_changes_no_state(name):
    """Six steps in a row, so that every mask is due; only counters, keys and metrics move."""
    params, opt_state = train_jitted(name, 7)
    before = arsam_jax.get_state(opt_state)
    for i in range(6):
        bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), make_batch(i))
        _, opt_state = jitted_step(name)(params, opt_state, bad)
    after = arsam_jax.get_state(opt_state)
    assert after.step == before.step + 6
    was_sampled = after.metrics.num_sampled > before.metrics.num_sampled
    assert was_sampled or name == "ae_sam"  # which samples by the norm, here NaN
    assert_bits_equal(after.probe, before.probe)
    assert_bits_equal(after.correction, before.correction)
    assert_bits_equal(after.radius, before.radius)
    for field in ("ratio", "ratio_rho", "ema_ratio", "moments"):
        kept, expected = (getattr(state.sampling, field, ()) for state in (after, before))
        assert_bits_equal(kept, expected)


def test_a_radius_of_zero_returns_the_gradients_untouched(name):
    """Not only equal: the updates are the arrays that came in, with no operation between."""
    tx = METHODS[name].make(rho=0.0)
    params, state = make_params(), tx.init(make_params())
    grads = jax.grad(loss_fn)(params, make_batch(0))
    program = jax.make_jaxpr(lambda g: tx.update(g, state, params, grad_fn=lambda p: p)[0])(grads)
    assert program.jaxpr.outvars == program.jaxpr.invars


def test_a_program_of_float32_is_one_under_x64(name, x64):
    """No constant, draw or counter takes the wide default dtype (indices of a sort do in JAX)."""
    tx, params, batch = METHODS[name].make(), make_params(), make_batch(0)
    state = tx.init(params)
    program = str(jax.make_jaxpr(make_step(tx))(params, state, batch))
    assert not re.findall(r"\bf64\[[^\]]+\]", program)
    kinds = {x.dtype for x in jax.tree.leaves(state)}
    assert not {jnp.dtype("float64"), jnp.dtype("int64")} & kinds


def test_draws_do_not_depend_on_x64(name, x64):
    tx, params, batch = METHODS[name].make(), make_params(), make_batch(0)

    def first_steps():
        first = state = tx.init(params)
        for _ in range(2):
            _, state = make_step(tx)(params, state, batch)
        return jax.device_get((first.probe, state.probe, state.metrics.sampled))

    if any(x.dtype == jnp.uint32 for x in jax.tree.leaves(tx.init(params))):  # it has a key
        wide = first_steps()
        jax.config.update("jax_enable_x64", False)
        chex.assert_trees_all_close(wide, first_steps(), rtol=1e-5, atol=1e-6)


WEAK = jnp.array(0.7)  # made before x64 is enabled: float32, and weakly typed


def test_weakly_typed_parameters_train(name, x64):
    assert WEAK.weak_type
    tx, params = METHODS[name].make(), make_params() | {"scale": WEAK}
    state = tx.init(params)
    after = jax.eval_shape(make_step(tx), params, state, make_batch(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, (params, state))


def test_shapes_alone_make_a_state(name):
    """Of arrays, as those of ``optax.adam``; it depends on no value of the parameters."""
    tx = METHODS[name].make()
    shapes = jax.eval_shape(make_params)
    expected = tx.init(make_params())
    assert_bits_equal(tx.init(shapes), expected)
    abstract = jax.eval_shape(tx.init, shapes)
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, expected)


def test_donated_buffers_are_compiled_for_once_and_a_state_has_fixed_types(name):
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
    chex.assert_trees_all_close(*metrics, rtol=1e-5)  # XLA sums a norm in another order


def test_scan_equals_the_loop(name):
    tx = make_tx(name)
    step = make_step(tx)
    batches = jax.tree.map(lambda *x: jnp.stack(x), *map(make_batch, range(12)))
    params = make_params()
    scanned, _ = jax.lax.scan(
        lambda carry, batch: (step(*carry, batch), None), (params, tx.init(params)), batches
    )
    chex.assert_trees_all_close(scanned, train_jitted(name, 12), rtol=1e-4, atol=1e-5)


def test_vmap_over_models_equals_each_alone(name):
    tx = make_tx(name)
    models = [jax.tree.map(lambda x, i=i: x * (1 + 0.1 * i), make_params()) for i in range(3)]
    stack = functools.partial(jax.tree.map, lambda *x: jnp.stack(x))
    params = stack(*models)
    opt_state = jax.vmap(tx.init)(params)
    step = jax.jit(jax.vmap(make_step(tx), in_axes=(0, 0, None)))
    together = train(tx, 12, params, opt_state=opt_state, step=step)
    alone = stack(*(train_jitted(name, 12, params=model) for model in models))
    chex.assert_trees_all_close(together, alone, rtol=1e-4, atol=1e-5)


def test_vmap_over_parts_of_the_batch_equals_one_device(name):
    tx = make_tx(name)
    mapped = jax.vmap(make_step(tx, axis_name="batch"), in_axes=(None, None, 0), axis_name="batch")
    step = jax.jit(mapped)

    def in_parts(params, opt_state, batch):
        """Of the batch, or each the whole of it where the perturbation is that of a part."""
        if METHODS[name].method.is_local:
            parts = jax.tree.map(lambda x: jnp.stack([x, x]), batch)
        else:
            parts = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), batch)
        result = step(params, opt_state, parts)
        first, second = (jax.tree.map(lambda x, i=i: x[i], result) for i in (0, 1))
        assert_bits_equal(first, second)
        return first

    result = train(tx, 6, step=in_parts)
    if name == "ausam":  # each part draws for itself
        chex.assert_tree_all_finite(result)
    else:
        chex.assert_trees_all_close(result, train_jitted(name, 6), rtol=1e-4, atol=1e-5)


def test_dtypes_are_kept(name, x64):
    """Of float64, to which three narrow ones in one tree come close."""
    tx, wide = make_tx(name), make_params(jnp.float64)
    narrow = {"kernel": jnp.bfloat16, "bias": jnp.float32, "scale": jnp.float16}
    mixed = wide | {leaf: wide[leaf].astype(dtype) for leaf, dtype in narrow.items()}
    results = []
    for params in (wide, mixed):
        after = train_jitted(name, 8, params=params)
        chex.assert_trees_all_equal_dtypes((params, tx.init(params)), after)
        chex.assert_tree_all_finite(after)
        results.append(jax.tree.map(lambda x: x.astype(jnp.float64), after[0]))
    chex.assert_trees_all_close(*results, atol=0.1)


def test_empty_params(name):
    tx = METHODS[name].make()
    state = tx.init({})
    updates, _ = tx.update(
        {},
        state,
        {},
        grad_fn=lambda p: p,
        previous_grad_fn=lambda p: p,
        direction={},
        example_loss_fn=lambda p, b: b,
        batch=jnp.ones(2),
        example_index=jnp.arange(2),
    )
    assert updates == {}


def test_leaves_without_elements(name):
    tx = make_tx(name)
    params = make_params() | {"nothing": jnp.zeros((0, 3)), "more_of_it": jnp.zeros(0)}
    after, state = train(tx, 2, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, params)
    chex.assert_tree_all_finite((after, state))


def test_executed_evaluations_of_grad_fn_are_those_of_the_sampled_steps(name):
    executed = []
    tx = make_tx(name)
    step = jax.jit(make_step(tx, on_gradient=lambda: executed.append(1)))
    _, opt_state = train(tx, 12, step=step)
    jax.block_until_ready(opt_state)
    jax.effects_barrier()
    sampled = int(arsam_jax.get_metrics(opt_state).num_sampled)
    assert len(executed) == METHODS[name].evaluations * sampled
    assert 0 < sampled <= 12


def test_missing_grad_fn_is_explained_with_an_example(name):
    tx = make_tx(name)
    params = make_params()
    grads = jax.grad(loss_fn)(params, make_batch(0))
    with pytest.raises(ValueError, match=r"(?s)grad_fn.*tx\.update\(.*grad_fn=grad_fn\)"):
        tx.update(grads, tx.init(params), params)


def test_missing_params_are_explained(name):
    tx = make_tx(name)
    params = make_params()
    with pytest.raises(ValueError, match=r"needs params: tx\.update\(grads, state, params"):
        tx.update(params, tx.init(params), grad_fn=lambda p: p)


def test_unknown_extra_args_are_ignored(name):
    tx = make_tx(name)

    def update(*args, **extra_args):
        return tx.update(*args, **extra_args, unknown=3, value=1.0, loss="x")

    more = optax.GradientTransformationExtraArgs(tx.init, update)
    args = make_params(), tx.init(make_params()), make_batch(0)
    without, program = (str(jax.make_jaxpr(make_step(t))(*args)) for t in (tx, more))
    assert program == without


def test_value_fn_is_accepted_for_grad_fn(name):
    tx = make_tx(name)
    params = make_params()
    batch = make_batch(0)
    args = jax.grad(loss_fn)(params, batch), tx.init(params), params
    common = {"example_loss_fn": example_loss_fn, "batch": batch}
    common["example_index"] = example_index(batch)
    common["previous_grad_fn"] = lambda p: jax.grad(loss_fn)(p, batch)
    common["direction"] = params
    by_value = tx.update(*args, value_fn=lambda p: loss_fn(p, batch), **common)
    by_grad = tx.update(*args, grad_fn=lambda p: jax.grad(loss_fn)(p, batch), **common)
    assert_bits_equal(by_value, by_grad)


def test_inject_hyperparams_turns_every_number_into_an_array(name):
    tx = optax.chain(METHODS[name].injected(), optax.sgd(0.05, momentum=0.9))
    params, opt_state = train(tx, 8)
    assert float(opt_state[0].hyperparams["rho"]) == pytest.approx(0.1)
    chex.assert_trees_all_close(params, train_jitted(name, 8)[0], rtol=1e-5, atol=3e-6)


def test_apply_if_finite_on_both_sides(name):
    expected, _ = train_jitted(name, 8)
    base = optax.sgd(0.05, momentum=0.9)
    within = optax.chain(METHODS[name].make(), optax.apply_if_finite(base, 3))
    params, _ = train(optax.apply_if_finite(within, 3), 8)
    chex.assert_trees_all_close(params, expected, rtol=1e-5, atol=1e-6)


def test_schedule_free(name):
    tx = optax.contrib.schedule_free(
        optax.chain(METHODS[name].make(), optax.sgd(0.05)), learning_rate=0.05
    )
    params, state = train(tx, 8)
    chex.assert_tree_all_finite(params)
    assert arsam_jax.get_state(state).step == 8


def test_multi_steps_around_the_chain(name):
    tx = optax.MultiSteps(make_tx(name), every_k_schedule=2)
    with jax.numpy_dtype_promotion("standard"):  # optax divides float32 by int32 here
        params, state = train(tx, 8)
    chex.assert_tree_all_finite(params)
    assert arsam_jax.get_state(state).step == 4


def test_serialization_round_trip_goes_on_bit_for_bit(name, tmp_path):
    tx = make_tx(name)
    expected = train_jitted(name, 20)
    params, opt_state = train_jitted(name, 9)

    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / "state", (params, opt_state))
    checkpointer.wait_until_finished()
    target = make_params(), tx.init(make_params())
    by_orbax = checkpointer.restore(tmp_path / "state", target)
    by_flax = flax.serialization.from_bytes(
        target, flax.serialization.to_bytes((params, opt_state))
    )
    for restored, opt_state in (by_orbax, jax.tree.map(jnp.asarray, by_flax)):
        assert_bits_equal(
            train_jitted(name, 11, params=restored, first=9, opt_state=opt_state), expected
        )


def test_metrics_are_found_anywhere_and_tell_the_truth(name):
    tx = optax.chain(optax.chain(make_tx(name)), optax.identity())
    params = make_params()
    _, opt_state = train(tx, 1, params)
    metrics = arsam_jax.get_metrics(opt_state)
    assert metrics == arsam_jax.get_state(opt_state).metrics
    assert metrics.rho > 0
    assert metrics.grad_norm == metrics.correction_norm == metrics.cosine == 0

    _, opt_state = make_step(tx, measure=True)(params, tx.init(params), make_batch(0))
    measured = arsam_jax.get_metrics(opt_state)
    chex.assert_trees_all_equal(measured[:3], metrics[:3])
    norm = optax.tree.norm(jax.grad(loss_fn)(params, make_batch(0)))
    np.testing.assert_allclose(measured.grad_norm, norm, rtol=1e-5)
    assert (measured.perturbed_grad_norm > 0) == bool(measured.sampled)
