"""The laws of the design. Each test here fails if its law is broken."""

import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import arsam_jax
from arsam_jax import ascent, correction, probe, sampling, selection, sharpness_aware, sparse
from tests.methods import METHODS, every_method
from tests.problem import (
    count_gradients,
    loss_fn,
    make_batch,
    make_params,
    make_step,
    train,
    train_sam_of_optax,
)

# 1. One lax.cond; the untaken branch costs nothing.


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (sampling.never(), [1] * 12),
        (sampling.always(), [2] * 12),
        (sampling.every_k(4), [2, 1, 1, 1] * 3),
    ],
    ids=["never", "always", "every_k"],
)
def test_executed_gradients_are_one_plus_sampled(policy, expected):
    counts, state = count_gradients(sharpness_aware(0.1, sampling=policy), 12)
    assert counts == expected
    assert state.metrics.num_sampled == sum(expected) - 12


def test_executed_gradients_of_arsam_are_one_plus_sampled():
    tx = arsam_jax.arsam(0.1, 0.5, segment_length=10, initial_samples=4, warmup_steps=3)
    counts, state = count_gradients(tx, 60)
    assert counts[:3] == [2, 2, 2]
    assert set(counts) == {1, 2}
    assert state.metrics.num_sampled == sum(counts) - 60


def test_there_is_one_cond_and_the_first_gradient_is_outside_it():
    tx = arsam_jax.arsam(0.1, 0.5)
    params = make_params()
    jaxpr = jax.make_jaxpr(make_step(tx))(params, tx.init(params), make_batch(0)).jaxpr
    conds = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "cond"]
    assert len(conds) == 1
    tanhs = [str(branch).count("tanh") for branch in conds[0].params["branches"]]
    assert tanhs == [0, 1]  # false branch: no gradient; true branch: one forward pass
    assert sum(eqn.primitive.name == "tanh" for eqn in jaxpr.eqns) == 1


# 2. The radius follows the true step.


def test_radius_schedule_counts_steps_and_not_samples():
    tx = sharpness_aware(
        lambda step: 0.1 + 0.01 * step.astype(jnp.float32), sampling=sampling.every_k(3)
    )
    step = jax.jit(make_step(tx))
    params, opt_state = make_params(), tx.init(make_params())
    for i in range(8):
        params, opt_state = step(params, opt_state, make_batch(i))
        np.testing.assert_allclose(opt_state.metrics.rho, 0.1 + 0.01 * i, rtol=1e-6)


def test_radius_of_the_perturbation_is_that_of_the_true_step():
    seen = []

    def grad_fn(params):
        jax.debug.callback(lambda w: seen.append(float(w[0])), params)
        return params

    tx = sharpness_aware(lambda step: 1.0 + step.astype(jnp.float32), sampling=sampling.every_k(3))
    params = jnp.array([3.0, 4.0])
    update = jax.jit(lambda g, s: tx.update(g, s, params, grad_fn=grad_fn))
    state = tx.init(params)
    for _ in range(7):
        _, state = update(params, state)
    jax.effects_barrier()
    np.testing.assert_allclose(seen, [3 + 0.6 * rho for rho in (1, 4, 7)], rtol=1e-6)


# 3. Norms, dots and the perturbation in float32; a zero gradient gives no NaN.


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_params_are_perturbed_in_float32(dtype):
    params = jnp.asarray(np.random.default_rng(0).normal(size=1000), dtype)
    grads = jnp.asarray(np.random.default_rng(1).normal(size=1000), dtype)
    seen = []
    sam = arsam_jax.sam(0.05)
    sam.update(grads, sam.init(params), params, grad_fn=lambda w: (seen.append(w), w)[1])
    (w,) = seen
    assert w.dtype == jnp.float32
    g = np.asarray(grads, np.float64)
    epsilon = np.asarray(w, np.float64) - np.asarray(params, np.float64)
    np.testing.assert_allclose(epsilon, 0.05 * g / np.linalg.norm(g), atol=1e-6)


def test_norms_of_half_precision_gradients_do_not_overflow_or_stall():
    params = jnp.zeros(70_000, jnp.float16)
    grads = jnp.full(70_000, 10.0, jnp.float16)  # the norm is exact, the sum of squares > 65504
    sam = arsam_jax.sam(0.05)
    _, state = sam.update(grads, sam.init(params), params, grad_fn=lambda w: grads, measure=True)
    np.testing.assert_allclose(state.metrics.grad_norm, 10 * np.sqrt(70_000), rtol=1e-5)
    np.testing.assert_allclose(state.metrics.cosine, 1, rtol=1e-5)


@pytest.mark.parametrize("make", [arsam_jax.sam, lambda rho: arsam_jax.arsam(rho, 1.0)])
def test_zero_gradient_gives_zero_perturbation(make):
    tx = make(0.1)
    params = jnp.ones(3)
    zeros = jnp.zeros(3)
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(
            zeros, state, params, grad_fn=lambda w: jnp.where(w == 1, 0.0, jnp.nan)
        )
        chex.assert_trees_all_equal(updates, zeros)
        chex.assert_tree_all_finite(state)


# 4. What is not finite is passed on and never kept.


def controlled(**kw):
    kw = {"segment_length": 2, "initial_samples": 2, "min_samples": 2} | kw
    return arsam_jax.arsam(0.1, 1.0, **kw)  # samples every step


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["clean", "perturbed"])
def test_non_finite_gradients_are_emitted_and_not_kept(which, bad):
    tx = controlled()
    params = jnp.array([1.0, -2.0, 3.0])
    state = tx.init(params)
    for scale in (1.0, 1.3, 0.8):
        _, state = tx.update(params, state, params, grad_fn=lambda w, a=scale: a * w**3)
    before = state

    poison = jnp.array([0.0, bad, 0.0])
    grads = params + poison if which == "clean" else params
    updates, state = tx.update(grads, state, params, grad_fn=lambda w: w + poison)
    assert not jnp.isfinite(jnp.asarray(updates)).all()
    chex.assert_trees_all_equal(state.correction, before.correction)
    for field in ("ratio", "ema_ratio"):
        assert getattr(state.sampling, field) == getattr(before.sampling, field)
    chex.assert_tree_all_finite((state.sampling, state.correction))
    assert state.age == before.age + 1
    assert state.metrics.sampled

    _, state = tx.update(params, state, params, grad_fn=lambda w: w**3)
    chex.assert_tree_all_finite(state)
    assert state.age == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_clean_gradient_does_not_enter_a_probe_that_masks_it(bad):
    """Its state must not move although the perturbed gradient is finite."""
    ema = optax.chain(ascent.subtract_ema(), optax.zero_nans(), ascent.normalize())
    tx = sharpness_aware(0.1, probe=probe.perturb(ema))
    params = jnp.array([1.0, -2.0, 3.0])
    _, state = tx.update(params, tx.init(params), params, grad_fn=lambda w: w)
    poisoned = params + jnp.array([0.0, bad, 0.0])
    _, after = tx.update(poisoned, state, params, grad_fn=lambda w: params)
    chex.assert_trees_all_equal(after.probe, state.probe)


def test_a_gradient_too_large_for_its_norm_is_kept_nowhere():
    tx = arsam_jax.arsam(0.1, 0.4, warmup_steps=9)
    params = jnp.arange(1.0, 5.0)
    _, state = tx.update(params, tx.init(params), params, grad_fn=lambda w: w**3)
    _, after = tx.update(params + 1e20, state, params, grad_fn=lambda w: w + 1e20)
    chex.assert_trees_all_equal(after.correction, state.correction)
    assert after.age == state.age + 1
    assert after.sampling.ratio == state.sampling.ratio


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_gradients_do_not_move_the_moments_of_a_policy(bad):
    policy = sampling.gradient_norm_gate(100)
    state = policy.init()
    for i in range(20):
        _, state = policy.decide(state, jnp.int32(i), jnp.float32(1 + 0.1 * (i % 3)))
    for i in range(20, 30):
        _, after = policy.decide(state, jnp.int32(i), jnp.float32(bad))
        chex.assert_trees_all_equal(after, state)


def test_apply_if_finite_sees_a_bad_perturbed_gradient():
    tx = optax.chain(arsam_jax.sam(0.1), optax.apply_if_finite(optax.sgd(0.1), 5))
    params = jnp.ones(3)
    updates, state = tx.update(params, tx.init(params), params, grad_fn=lambda w: w * jnp.nan)
    chex.assert_trees_all_equal(updates, jnp.zeros(3))
    assert state[1].notfinite_count == 1


# 5. No radius or no sampling is the base optimizer bit for bit; always is SAM.

BASE = optax.sgd(0.05, momentum=0.9)


@pytest.mark.parametrize(
    "tx",
    [
        arsam_jax.sam(0.0),
        arsam_jax.arsam(0.0, 0.5, segment_length=5, initial_samples=5),
        arsam_jax.sam(lambda step: 0.0 * step.astype(jnp.float32)),
        sharpness_aware(0.3, sampling=sampling.never()),
        sharpness_aware(0.3, sampling=sampling.never(), correction=correction.reuse_psf(None)),
    ],
    ids=["sam", "arsam", "schedule", "never", "never_with_reuse"],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_radius_or_no_sampling_is_the_base_optimizer(tx, dtype):
    params, opt_state = train(optax.chain(tx, BASE), 20, make_params(dtype))

    base = optax.with_extra_args_support(BASE)
    expected, _ = train(base, 20, make_params(dtype))
    chex.assert_trees_all_equal(params, expected)
    assert arsam_jax.get_metrics(opt_state).num_sampled == 0


def network_loss(params, x):
    """Of a network whose kernels XLA fuses with whatever stands beside them."""
    hidden = jax.nn.gelu(x @ params["in"] + jnp.broadcast_to(params["bias"], (64, 32)))
    logits = hidden @ params["out"]
    return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[:, 0])


@pytest.mark.parametrize(
    "make",
    [
        lambda base: optax.chain(arsam_jax.arsam(0.0), base),
        lambda base: optax.chain(arsam_jax.budgeted_sam(0.0, total_steps=60), base),
        lambda base: optax.chain(sharpness_aware(0.3, sampling=sampling.never()), base),
        lambda base: arsam_jax.decouple(arsam_jax.wsam(0.0), base, 3e-3),
    ],
    ids=["arsam", "budgeted_sam", "never", "decouple"],
)
@pytest.mark.usefixtures("standard_promotion")
def test_no_radius_is_the_base_optimizer_in_a_program_that_is_fused(make):
    rng, base = np.random.default_rng(0), optax.adamw(3e-3)
    shapes = {"in": (16, 32), "bias": (32,), "out": (32, 8)}
    start = {k: jnp.asarray(0.3 * rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
    ends = []
    for tx in (make(base), optax.with_extra_args_support(base)):

        @jax.jit
        def step(params, state, x, tx=tx):
            grad_fn = lambda p: jax.grad(network_loss)(p, x)  # noqa: E731
            updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
            return optax.apply_updates(params, updates), state

        params, state = start, tx.init(start)
        for i in range(60):
            x = jnp.asarray(np.random.default_rng(i).normal(size=(64, 16)), jnp.float32)
            params, state = step(params, state, x)
        ends.append(params)
    chex.assert_trees_all_equal(*ends)


def test_sam_equals_the_sam_of_optax(x64):
    params = jax.tree.map(lambda x: x.astype(jnp.float64), make_params())
    ours, _ = train(optax.chain(arsam_jax.sam(0.1), BASE), 20, params)
    theirs = train_sam_of_optax(BASE, 0.1, 20, params)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_arsam_that_samples_every_step_is_sam():
    always = arsam_jax.arsam(
        0.1, 0.7, segment_length=10, initial_samples=10, min_samples=10, reuse_steps=None
    )
    ours, opt_state = train(optax.chain(always, BASE), 40)
    expected, _ = train(optax.chain(arsam_jax.sam(0.1), BASE), 40)
    chex.assert_trees_all_equal(ours, expected)
    assert arsam_jax.get_metrics(opt_state).num_sampled == 40


@pytest.mark.parametrize("name", ["arsam", "momentum_sam", "m_sam"])
def test_an_injected_radius_below_zero_is_zero(name):
    method = METHODS[name]
    injected = method.injected()
    params, base = make_params(), optax.with_extra_args_support(optax.identity())
    state = injected.init(params)
    state.hyperparams["rho"] = jnp.float32(-0.1)
    step = jax.jit(make_step(injected))
    ours, state = step(params, state, make_batch(0))
    expected, _ = jax.jit(make_step(base))(params, base.init(params), make_batch(0))
    chex.assert_trees_all_close(ours, expected, rtol=1e-6)
    assert arsam_jax.get_metrics(state).rho == 0


@pytest.mark.parametrize("name", every_method())
def test_a_radius_of_nan_is_visible_in_the_update_and_stored_nowhere(name):
    method = METHODS[name]
    tx = method.make(rho=lambda step: jnp.where(step == 3, jnp.nan, 0.1))
    params, state = make_params(), tx.init(make_params())
    step = jax.jit(make_step(tx))
    for i in range(5):
        moved, state = step(params, state, make_batch(i))
        is_finite = all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(moved))
        assert is_finite == (i != 3)
        chex.assert_tree_all_finite((state.probe, state.sampling, state.correction))


# 6. All devices take the same branch: tests/library/test_distributed.py.

# 11. Every random stream has its own key.


def test_the_draw_of_a_step_depends_on_seed_and_step_alone():
    def draws(seed):
        policy = sampling.bernoulli(0.5, seed)
        state = policy.init()
        return [bool(policy.decide(state, jnp.int32(i), norm)[0]) for i in range(64) for norm in N]

    N = (jnp.float32(1), jnp.float32(2))
    first, second = draws(0), draws(1)
    assert first[::2] == first[1::2] == draws(0)[::2]
    assert first != second
    assert 16 < sum(first[::2]) < 48


def test_no_two_streams_draw_from_one_key():
    """Of equal seeds: neither two parts, nor a part and a caller who folds in steps himself."""
    parts = {
        "bernoulli": sampling.bernoulli(0.5).init(),
        "autoregressive": sampling.autoregressive(0.5).init(),
        "random_mask": ascent.random_mask(0.5).init(jnp.ones(2)),
        "dynamic_mask": sparse.dynamic_mask(0.5, 9).init(jnp.ones(2)),
        "reweighted": probe.reweighted(1.0).init(jnp.ones(2)),
        "largest_changes": selection.largest_changes(4, 2).init(jnp.ones(2)),
    }
    keys = {name: tuple(np.asarray(state.key)) for name, state in parts.items()}
    caller = jax.random.key(0, impl="threefry2x32")
    folded = jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(caller, i)))
    keys |= {i: tuple(key) for i, key in enumerate(np.asarray(folded(jnp.arange(1000))))}
    keys["caller"] = tuple(np.asarray(jax.random.key_data(caller)))
    assert len(set(keys.values())) == len(keys)


def test_a_probe_and_a_policy_of_one_seed_draw_independently():
    """AUSAM draws each example on half of the steps that a random policy samples."""
    size, params = 8, jnp.ones(4)
    drawn = selection.largest_changes(size, 1, share=0.5, max_weight=0.1)
    tx = sharpness_aware(0.1, probe=drawn, sampling=sampling.bernoulli(0.25))
    extra = {"example_loss_fn": lambda p, b: b @ p * 0, "example_index": jnp.arange(size)}
    extra |= {"batch": jnp.ones((size, 4)), "grad_fn": lambda p: p}

    def step(_, state):
        return tx.update(params, state, params, **extra)[1]

    state = jax.jit(lambda s: jax.lax.fori_loop(0, 2000, step, s))(tx.init(params))
    shares = (state.probe.times - 1) / state.metrics.num_sampled
    np.testing.assert_allclose(shares, 0.5, atol=0.12)  # five standard deviations of 500 draws


# 7. BatchNorm statistics: tests/library/test_flax.py.

# 8. Masks go inside the ascent; accumulation goes inside grad_fn.


def test_masked_inside_the_ascent_spares_the_masked_leaves():
    params = {"kernel": jnp.array([3.0]), "bias": jnp.array([4.0])}
    mask = {"kernel": False, "bias": True}
    drop = optax.masked(optax.set_to_zero(), mask)
    for direction, kernel in (
        (optax.chain(ascent.normalize(), drop), 3 + 0.6),  # the norm counts the bias
        (optax.chain(drop, ascent.normalize()), 3 + 1.0),  # it does not
    ):
        tx = sharpness_aware(1.0, probe=probe.perturb(direction))
        updates, _ = jax.jit(lambda s, t=tx: t.update(params, s, params, grad_fn=lambda w: w))(
            tx.init(params)
        )
        chex.assert_trees_all_close(
            updates, {"kernel": jnp.array([kernel]), "bias": params["bias"]}
        )


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.masked(tx, {"kernel": True, "bias": False}),
        lambda tx: optax.partition({"a": tx, "b": optax.identity()}, {"kernel": "a", "bias": "b"}),
    ],
    ids=["masked", "partition"],
)
def test_masked_around_the_link_is_an_error_that_says_where_masks_go(wrap):
    tx = wrap(arsam_jax.sam(0.1))
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    with pytest.raises(ValueError, match="inside the ascent"):
        tx.update(params, tx.init(params), params, grad_fn=lambda w: w)


def test_masked_that_masks_nothing_works():
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    tx = optax.masked(arsam_jax.sam(0.1), {"kernel": True, "bias": True})
    updates, _ = tx.update(params, tx.init(params), params, grad_fn=lambda w: w)
    assert float(updates["kernel"][0]) == pytest.approx(1.05)


def test_accumulation_inside_grad_fn_equals_the_whole_batch():
    def make_accumulating(tx, on_gradient=None):
        def step(params, opt_state, batch):
            parts = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), batch)

            def grad_fn(params):
                grads = jax.lax.map(lambda part: jax.grad(loss_fn)(params, part), parts)
                return jax.tree.map(lambda g: g.mean(0), grads)

            updates, opt_state = tx.update(grad_fn(params), opt_state, params, grad_fn=grad_fn)
            return optax.apply_updates(params, updates), opt_state

        return step

    tx = optax.chain(arsam_jax.arsam(0.1, 0.5, segment_length=5, initial_samples=2), BASE)
    accumulated = train(tx, 20, step=jax.jit(make_accumulating(tx)))
    chex.assert_trees_all_close(accumulated, train(tx, 20), rtol=1e-4, atol=1e-5)


# 9. Buffers.


def params_sized_buffers(state, params):
    shapes = [x.shape for x in jax.tree.leaves(params) if x.ndim]
    return [x for x in jax.tree.leaves(state) if x.shape in shapes]


def test_only_reuse_keeps_a_buffer_and_reuse_dtype_sets_its_dtype():
    params = make_params()
    per_tree = 2  # leaves with a dimension
    assert params_sized_buffers(arsam_jax.sam(0.1).init(params), params) == []
    assert params_sized_buffers(arsam_jax.arsam(0.1, 1, reuse_steps=0).init(params), params) == []
    for dtype, expected in ((None, jnp.float32), (jnp.bfloat16, jnp.bfloat16)):
        state = arsam_jax.arsam(0.1, 1, reuse_dtype=dtype).init(params)
        buffers = params_sized_buffers(state, params)
        assert [x.dtype for x in buffers] == [expected] * per_tree


def test_reuse_in_bfloat16_is_close_to_reuse_in_float32():
    def run(dtype):
        tx = arsam_jax.arsam(0.1, 0.5, segment_length=5, initial_samples=2, reuse_dtype=dtype)
        return train(optax.chain(tx, BASE), 20)

    (ours, state), (expected, _) = run(jnp.bfloat16), run(None)
    chex.assert_trees_all_close(ours, expected, atol=0.02)
    assert state[0].correction.tree["kernel"].dtype == jnp.bfloat16


# 10. Under vmap a batched decision runs both branches.


def test_vmapped_decisions_run_both_branches_and_keep_the_right_one():
    tx = sharpness_aware(0.1, sampling=sampling.bernoulli(0.0))
    executed = []

    def grad_fn(w):
        jax.debug.callback(lambda: executed.append(1))
        return 2 * w

    params = jnp.ones((3, 2))
    state = jax.vmap(tx.init)(params)
    updates, state = jax.jit(jax.vmap(lambda g, s, p: tx.update(g, s, p, grad_fn=grad_fn)))(
        params, state, params
    )
    jax.block_until_ready(updates)
    jax.effects_barrier()
    assert executed  # paid for
    chex.assert_trees_all_equal(updates, params)  # and not used
    assert not state.metrics.sampled.any()


def test_the_core_needs_none_of_the_extras():
    code = """
import sys
for name in ("flax", "orbax", "tensorflow_datasets", "sklearn", "matplotlib"):
    sys.modules[name] = None
import arsam_jax
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# What once went wrong.


@pytest.mark.parametrize("make", [arsam_jax.arsam, arsam_jax.looksam])
def test_a_buffer_of_a_narrow_dtype_never_keeps_an_overflow(make):
    kwargs = {"alpha": 1.0, "warmup_steps": 9} if make is arsam_jax.arsam else {"k": 2}
    tx = make(0.1, reuse_dtype=jnp.float16, **kwargs)
    params = jnp.ones(2)
    _, state = tx.update(
        params, tx.init(params), params, grad_fn=lambda w: 1e5 * w * jnp.arange(2.0)
    )
    chex.assert_tree_all_finite(state)
    assert state.metrics.sampled


def test_a_bad_gradient_does_not_enter_the_psf_of_a_probe_that_leaves_it_unread():
    tx = sharpness_aware(0.1, probe=probe.momentum(), correction=correction.reuse_psf(2))
    params = jnp.ones(2)
    _, state = tx.update(params * jnp.nan, tx.init(params), params, grad_fn=lambda w: w)
    chex.assert_tree_all_finite(state.correction)
    _, state = tx.update(params, state, params, grad_fn=lambda w: 2 * w)
    assert state.age == 0


def test_a_negative_radius_of_a_schedule_is_none_for_every_probe():
    params = jnp.ones(2)
    extra = {"example_loss_fn": lambda w, b: b @ w, "batch": jnp.ones((4, 2))}
    for make in (
        lambda rho: arsam_jax.m_sam(rho, 2),
        arsam_jax.momentum_sam,
        lambda rho: arsam_jax.sampa(rho, 0.1),
    ):
        tx = make(lambda step: -1.0)
        state = tx.init(params)
        for _ in range(2):
            seen = []
            grad_fn = lambda w, seen=seen: (seen.append(w), w)[1]  # noqa: E731
            functions = {"grad_fn": grad_fn, "previous_grad_fn": grad_fn}
            _, state = tx.update(params, state, params, **functions, **extra)
            assert state.metrics.rho == 0
            assert all((w == params).all() for w in seen)


def test_unknown_extra_args_may_have_any_name():
    params = jnp.ones(2)
    names = ("grads", "rho", "step", "key", "probe", "value", "loss")
    extra = dict.fromkeys(names, 1)
    tx = arsam_jax.sam(0.1)
    chex.assert_trees_all_equal(
        tx.update(params, tx.init(params), params, grad_fn=lambda w: w, **extra),
        tx.update(params, tx.init(params), params, grad_fn=lambda w: w),
    )


@pytest.mark.parametrize("tx", [arsam_jax.sam(0.1), arsam_jax.arsam(0.1, warmup_steps=2**30)])
def test_counters_saturate_at_the_largest_integer(tx):
    params, most = jnp.ones(3), jnp.int32(2**31 - 1)
    state = tx.init(params)
    state = state._replace(step=most, metrics=state.metrics._replace(num_sampled=most))
    state = tx.update(params, state, params, grad_fn=lambda w: w)[1]
    state = tx.update(params, state, params, grad_fn=lambda w: w)[1]
    assert state.step == state.metrics.num_sampled == most
    assert arsam_jax.metrics_dict(state)["sampled_share"] == 1


def test_integer_params_are_refused_by_name():
    params = {"w": jnp.ones(2), "count": jnp.zeros([], jnp.int32)}
    tx = arsam_jax.sam(0.1)
    with pytest.raises(ValueError, match=r"params must be floating point .* 'int32'.*eqx\.is_inex"):
        tx.init(params)


def test_norm_mask_functions_see_the_parameters():
    seen = []
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(1)}

    def mask(params):
        seen.append(jax.tree.map(lambda p: p.dtype, params))
        return jax.tree.map(lambda p: p.dtype == jnp.bfloat16, params)

    tx = arsam_jax.arsam(0.1, 0.5, norm_mask=mask)
    tx.update(params, tx.init(params), params, grad_fn=lambda w: w)
    assert all(dtypes == {"a": jnp.bfloat16, "b": jnp.float32} for dtypes in seen)


def test_ae_sam_keeps_its_last_threshold_after_the_planned_steps():
    policy = sampling.gradient_norm_gate(100)
    norms = jnp.exp(0.3 * jax.random.normal(jax.random.key(0), (600,)))

    def step(state, seen):
        sampled, state = policy.decide(state, *seen)
        return state, sampled

    _, sampled = jax.lax.scan(step, policy.init(), (jnp.arange(600, dtype=jnp.int32), norms))
    assert 0.6 < sampled[100:].mean() < 0.98


@pytest.mark.parametrize(
    "make",
    [
        lambda rho: arsam_jax.arsam(rho, 0.5, warmup_steps=8, reuse_steps=None),
        lambda rho: arsam_jax.looksam(rho, 3),
        lambda rho: arsam_jax.budgeted_sam(rho, share=0.5),
    ],
    ids=["arsam", "looksam", "budgeted_sam"],
)
def test_where_the_radius_of_a_schedule_is_zero_nothing_is_reused(make):
    tx = make(lambda step: jnp.where(step < 8, 0.1, 0.0))
    params, state = train(tx, 8)
    update = jax.jit(make_link_update(tx))
    for i in range(8, 14):
        grads = jax.grad(loss_fn)(params, make_batch(i))
        updates, state = update(grads, state, params, make_batch(i))
        chex.assert_trees_all_equal(updates, grads)
    assert arsam_jax.get_metrics(state).num_sampled > 0


def make_link_update(tx):
    def update(grads, state, params, batch):
        return tx.update(grads, state, params, grad_fn=lambda p: jax.grad(loss_fn)(p, batch))

    return update


def test_asam_scales_a_complex_weight_by_its_modulus():
    w, g = np.array([3 + 4j, 0, -1j]), np.array([1 - 1j, 2j, 0.5])
    size = abs(w) + 0.01
    epsilon = 0.3 * size**2 * g / np.linalg.norm(size * g)
    tx, params, seen = arsam_jax.asam(0.3), jnp.asarray(w, jnp.complex64), []

    def grad_fn(params):
        seen.append(params)
        return params

    tx.update(jnp.asarray(g, jnp.complex64), tx.init(params), params, grad_fn=grad_fn)
    np.testing.assert_allclose(seen[-1], w + epsilon, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "by"),
    [
        (lambda: arsam_jax.arsam(0.1, 0.5, segment_length=4), "value_fn"),
        (lambda: arsam_jax.looksam(0.1, 3), "grad_fn"),
        (lambda: arsam_jax.budgeted_sam(0.1, share=0.3), "grad_fn"),
        (lambda: arsam_jax.gsam(0.1, 0.3), "value_fn"),
        (lambda: arsam_jax.momentum_sam(0.1), "grad_fn"),
        (lambda: arsam_jax.gam(0.1, gamma=0.3), "grad_fn"),
        (lambda: arsam_jax.m_sam(0.1, 2), "grad_fn"),
        (lambda: arsam_jax.esam(0.1, beta=1, gamma=0.5), "grad_fn"),
    ],
    ids=["arsam", "looksam", "budgeted", "gsam", "momentum", "gam", "m_sam", "esam"],
)
def test_complex_parameters_are_pairs_of_real_ones(make, by):
    x = jnp.asarray(np.random.default_rng(3).normal(size=(8, 3)), jnp.float32)

    def losses_of(z, x):  # real and imaginary part play different roles
        return jnp.square(x @ z.real - 1) + jnp.square(jnp.sin(x @ z.imag) + 2 * z.imag[0])

    def train(params, as_complex):
        tx = make()
        state = tx.init(params)

        def example_loss_fn(params, x):
            return losses_of(as_complex(params), x)

        def value_fn(params):
            return example_loss_fn(params, x).mean()

        def grad_fn(params):
            return jax.tree.map(jnp.conj, jax.grad(value_fn)(params))

        evaluate = {"grad_fn": grad_fn} if by == "grad_fn" else {"value_fn": value_fn}
        examples = {"example_loss_fn": example_loss_fn, "batch": x, "previous_grad_fn": grad_fn}

        @jax.jit
        def step(params, state):
            updates, state = tx.update(grad_fn(params), state, params, **evaluate, **examples)
            return jax.tree.map(lambda w, u: w - 0.05 * u, params, updates), state

        for _ in range(6):
            params, state = step(params, state)
        return as_complex(params)

    start = jnp.asarray([1 + 2j, -0.5 + 0.3j, 0.2 - 1j], jnp.complex64)
    by_pairs = train((start.real, start.imag), lambda pair: jax.lax.complex(*pair))
    np.testing.assert_allclose(train(start, lambda z: z), by_pairs, rtol=1e-4)
