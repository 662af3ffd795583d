"""Every method of the family against NumPy, written from its paper's formula, over many steps.

The problem is least squares with known gradients of single examples: l_i(w) = (a_i·w − b_i)² / 2.
"""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import arsam_jax
from arsam_jax import (
    _random,
    correction,
    methods,
    probe,
    sampling,
    selection,
    sharpness_aware,
    sparse,
)
from arsam_jax.ascent import normalize, normalize_by_weights, random_mask
from tests.methods import METHODS
from tests.problem import (
    example_loss_fn,
    loss_fn,
    make_batch,
    make_params,
    make_step,
    train,
    train_sam_of_optax,
)

SIZE, BATCH, STEPS, EXAMPLES = 8, 6, 40, 20
RHO = 0.3
BASE = optax.sgd(0.05, momentum=0.9)


def split(flat):
    """A vector as a tree of a matrix and a vector."""
    return {"a": flat[:6].reshape(3, 2), "b": flat[6:]}


def join(tree):
    return np.concatenate([np.ravel(tree["a"]), np.ravel(tree["b"])])


def draw_batch(step, size=BATCH):
    rng = np.random.default_rng([11, step])
    return rng.normal(size=(size, SIZE)), rng.normal(size=size)


def draw_index(step):
    return np.random.default_rng([13, step]).permutation(EXAMPLES)[:BATCH]


def example_losses(w, batch):
    return (batch[0] @ w - batch[1]) ** 2 / 2


def example_gradients(w, batch):
    return (batch[0] @ w - batch[1])[:, None] * batch[0]


def gradient(w, batch):
    return example_gradients(w, batch).mean(0)


def unit(x):
    return x / np.linalg.norm(x)


def perturbed(w, batch):
    return gradient(w + RHO * unit(gradient(w, batch)), batch)


def jax_example_loss_fn(params, batch):
    flat = jnp.concatenate([params["a"].reshape(-1), params["b"]])
    return jnp.square(batch[0] @ flat - batch[1]) / 2


def assert_follows(tx, reference, steps=STEPS, on_state=None, extra_args=None):
    """Compares the updates of ``tx`` with ``reference(step, w, batch, sampled)`` over a run."""

    @jax.jit
    def update(params, state, batch, index):
        def grad_fn(params):
            return jax.grad(lambda p: jax_example_loss_fn(p, batch).mean())(params)

        extra = {"example_loss_fn": jax_example_loss_fn, "batch": batch, "example_index": index}
        extra |= extra_args or {}
        return tx.update(grad_fn(params), state, params, grad_fn=grad_fn, **extra)

    w = np.random.default_rng(0).normal(size=SIZE)
    state = tx.init(jax.tree.map(jnp.asarray, split(w)))
    for step in range(steps):
        batch = draw_batch(step)
        examples = *jax.tree.map(jnp.asarray, batch), jnp.asarray(draw_index(step))
        updates, state = update(split(w), state, examples[:2], examples[2])
        expected = reference(step, w, batch, bool(state.metrics.sampled))
        np.testing.assert_allclose(join(updates), expected, rtol=1e-9, atol=1e-12)
        if on_state is not None:
            on_state(step, state)
        w = w - 0.02 * join(updates)
    return state


pytestmark = pytest.mark.usefixtures("x64")


def test_sam_every_k():
    def reference(step, w, batch, sampled):
        assert sampled == (step % 5 == 0)
        return perturbed(w, batch) if sampled else gradient(w, batch)

    assert_follows(arsam_jax.sam_every_k(RHO, 5), reference)


def test_looksam():
    kept = {}

    def reference(step, w, batch, sampled):
        g = gradient(w, batch)
        if step % 3 == 0:
            g_sam = perturbed(w, batch)
            kept["v"] = g_sam - (g @ g_sam) / (g @ g) * g
            return g_sam
        return g + 0.7 * np.linalg.norm(g) / np.linalg.norm(kept["v"]) * kept["v"]

    assert_follows(arsam_jax.looksam(RHO, k=3), reference)


def test_ae_sam():
    mu, variance, shares = 0.0, 0.0, []

    def reference(step, w, batch, sampled):
        nonlocal mu, variance
        g = gradient(w, batch)
        x = g @ g
        mu = 0.9 * mu + 0.1 * x
        variance = 0.9 * variance + 0.1 * (x - mu) ** 2
        c = step / STEPS * -1 + (1 - step / STEPS) * 1
        assert sampled == (x >= mu + c * np.sqrt(variance))
        shares.append(sampled)
        return perturbed(w, batch) if sampled else g

    assert_follows(arsam_jax.ae_sam(RHO, STEPS), reference)
    assert 0.1 < np.mean(shares) < 0.9


def test_esam_selects_the_examples_whose_loss_rises_most():
    def reference(step, w, batch, sampled):
        point = w + RHO * unit(gradient(w, batch))
        rise = example_losses(point, batch) - example_losses(w, batch)
        chosen = np.argsort(-rise)[:3]
        return example_gradients(point, batch)[chosen].mean(0)

    assert_follows(arsam_jax.esam(RHO, beta=1, gamma=0.5), reference)


@pytest.mark.parametrize("per", ["coordinate", "tensor"])
def test_esam_perturbs_a_random_share_divided_by_beta(per):
    masks = []

    def reference(step, w, batch, sampled):
        g = gradient(w, batch)
        ascent = random_mask(0.6, per, seed=4)
        ones = split(np.ones(SIZE))
        masked, _ = ascent.update(ones, ascent.init(ones), step=jnp.int32(step))
        m = join(masked)
        masks.append(m)
        return gradient(w + RHO * unit(g) * m, batch)

    assert_follows(arsam_jax.esam(RHO, beta=0.6, gamma=1, per=per, seed=4), reference)
    masks = np.stack(masks)
    assert set(np.unique(masks.round(6))) == {0, round(1 / 0.6, 6)}
    assert abs((masks > 0).mean() - 0.6) < 0.15
    for leaf in (masks[:, :6], masks[:, 6:]):
        together = (leaf > 0).all(1) | (leaf == 0).all(1)
        assert together.all() == (per == "tensor")


def test_gradient_norm_penalty():
    def reference(step, w, batch, sampled):
        return 0.3 * gradient(w, batch) + 0.7 * perturbed(w, batch)

    assert_follows(arsam_jax.gradient_norm_penalty(RHO, 0.7), reference)


def test_asam():
    def reference(step, w, batch, sampled):
        g, t = gradient(w, batch), np.abs(w) + 0.01
        return gradient(w + RHO * t**2 * g / np.linalg.norm(t * g), batch)

    assert_follows(arsam_jax.asam(RHO), reference)


def test_gsam():
    def reference(step, w, batch, sampled):
        g, g_sam = gradient(w, batch), perturbed(w, batch)
        return g_sam - 0.4 * (g - (g @ g_sam) / (g_sam @ g_sam) * g_sam)

    assert_follows(arsam_jax.gsam(RHO, 0.4), reference)


def test_multi_step_sam():
    def reference(step, w, batch, sampled):
        point = w
        for _ in range(3):
            point = point + RHO / 3 * unit(gradient(point, batch))
        return gradient(point, batch)

    assert_follows(arsam_jax.multi_step_sam(RHO, 3), reference)


def test_multi_step_sam_is_that_of_optax_at_n_times_the_radius():
    params = jax.tree.map(lambda x: x.astype(jnp.float64), make_params())
    ours, _ = train(optax.chain(arsam_jax.multi_step_sam(0.2, 2), BASE), 10, params)
    theirs = train_sam_of_optax(BASE, 0.1, 10, params, sync_period=3)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_momentum_sam():
    v = np.zeros(SIZE)

    def reference(step, w, batch, sampled):
        nonlocal v
        g = gradient(w - RHO * v / max(np.linalg.norm(v), 1e-300), batch)
        v = 0.8 * v + g
        return g

    assert_follows(arsam_jax.momentum_sam(RHO, decay=0.8), reference)


def test_gam():
    def reference(step, w, batch, sampled):
        g_0 = gradient(w, batch)
        g_1 = gradient(w + 0.1 * unit(g_0), batch)
        w_2 = w + RHO * unit(g_1 - g_0)
        g_2 = gradient(w_2, batch)
        g_3 = gradient(w_2 + 0.1 * unit(g_2), batch)
        ahead = 0.6 * g_1 + 0.4 * g_3
        behind = g_0 + 0.7 * g_2
        cosine = ahead @ behind / np.linalg.norm(ahead) / np.linalg.norm(behind)
        vertical = behind - cosine * np.linalg.norm(behind) * unit(ahead)
        return ahead - 0.5 * vertical

    tx = arsam_jax.gam(RHO, grad_rho=0.1, alpha=0.6, beta=0.3, gamma=0.5)
    assert_follows(tx, reference)
    schedule = arsam_jax.gam(RHO, grad_rho=lambda step: 0.1, alpha=0.6, beta=0.3, gamma=0.5)
    assert_follows(schedule, reference, steps=3)


def test_gam_of_a_quadratic_looks_for_the_largest_gradient_norm():
    """‖∇L‖ = ‖H w‖ grows along H g, which w_2 is moved along, not along g as in SAM."""
    h, w, seen = jnp.asarray([1.0, 4.0]), jnp.asarray([2.0, 1.0]), []
    tx = arsam_jax.gam(0.5, grad_rho=0.01)
    tx.update(h * w, tx.init(w), w, grad_fn=lambda w: (seen.append(w), h * w)[1])
    np.testing.assert_allclose(seen[1] - w, 0.5 * unit(np.asarray([2.0, 16.0])), rtol=1e-9)


def test_sampa():
    """The authors' algorithm: x̃ and y from the gradient at the last y, each batch seen twice."""

    def rate(step):
        return 0.02 / (1.0 + jnp.asarray(step, jnp.float64))

    tx = arsam_jax.sampa(RHO, rate, interpolation=0.3)
    assert (arsam_jax.sampa.__kwdefaults__ or {})["interpolation"] == 0.2

    @jax.jit
    def update(params, state, batch, previous):
        def on(batch):
            return jax.grad(lambda p: jax_example_loss_fn(p, batch).mean())

        functions = {"grad_fn": on(batch), "previous_grad_fn": on(previous)}
        return tx.update(on(batch)(params), state, params, **functions)

    x = np.random.default_rng(0).normal(size=SIZE)
    state = tx.init(jax.tree.map(jnp.asarray, split(x)))
    at_y, previous = np.zeros(SIZE), draw_batch(0)
    for step in range(STEPS):
        batch = draw_batch(step)
        x_tilde = x + RHO * at_y / max(np.linalg.norm(at_y), 1e-300)
        at_y = gradient(x - float(rate(step)) * at_y, batch)
        expected = 0.7 * gradient(x_tilde, previous) + 0.3 * at_y
        updates, state = update(split(x), state, batch, previous)
        np.testing.assert_allclose(join(updates), expected, rtol=1e-9, atol=1e-12)
        x, previous = x - 0.02 * join(updates), batch


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


def test_friendly_sam():
    m = None

    def reference(step, w, batch, sampled):
        nonlocal m
        g = gradient(w, batch)
        d = g if m is None else g - 0.9 * m
        m = g if m is None else 0.8 * m + 0.2 * g
        return gradient(w + RHO * unit(d), batch)

    assert_follows(arsam_jax.friendly_sam(RHO, sigma=0.9, decay=0.8), reference)


def test_final_phase_sam():
    def reference(step, w, batch, sampled):
        assert sampled == (step >= 28)
        return perturbed(w, batch) if sampled else gradient(w, batch)

    assert_follows(arsam_jax.final_phase_sam(RHO, STEPS, share=0.3), reference)


def test_usam():
    def reference(step, w, batch, sampled):
        return gradient(w + 0.05 * gradient(w, batch), batch)

    assert_follows(arsam_jax.usam(0.05), reference)


@pytest.mark.parametrize("count", [1, 2, 3, BATCH])
def test_m_sam_from_the_whole_batch_to_single_examples(count):
    def reference(step, w, batch, sampled):
        grads = []
        for k in range(count):
            part = batch[0][k::count], batch[1][k::count]
            grads.append(gradient(w + RHO * unit(gradient(w, part)), part))
        return np.mean(grads, 0)

    assert_follows(arsam_jax.m_sam(RHO, count), reference)


@pytest.mark.parametrize("delta", [None, 0.01])
def test_rw_sam(delta):
    key = _random.make_key(9)

    def reference(step, w, batch, sampled):
        tree = split(w)
        z = unit(join(optax.tree.random_like(_random.step_key(key, jnp.int32(step)), tree)))
        if delta is None:
            norms = np.abs(example_gradients(w, batch) @ z)
        else:
            moved = example_losses(w + delta * z, batch)
            norms = np.abs(moved - example_losses(w, batch)) / delta
        p = np.exp(1.5 * norms / norms.mean())
        direction = unit((p / p.sum()) @ example_gradients(w, batch))
        return gradient(w + RHO * direction, batch)

    tx = arsam_jax.rw_sam(RHO, inverse_temperature=1.5, delta=delta, seed=9)
    assert_follows(tx, reference)


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


# Sparse SAM


def top(scores, count):
    mask = np.zeros(len(scores), bool)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask


@pytest.mark.parametrize("pattern", ["unstructured", "structured", (1, 2), (1, 2, -1)])
def test_sparse_sam_with_fisher_masks(pattern):
    mask = None

    def reference(step, w, batch, sampled):
        nonlocal mask
        if step % 4 == 0:
            fisher = (example_gradients(w, batch)[:4] ** 2).mean(0)
            if pattern == "unstructured":
                mask = top(fisher, 4)
            elif pattern == "structured":  # whole leaves until the budget of 4 is reached
                order = ["a", "b"] if fisher[:6].mean() >= fisher[6:].mean() else ["b", "a"]
                live = order[:1] if order[0] == "a" else order
                mask = np.array(["a" in live] * 6 + ["b" in live] * 2)
            else:  # the larger of every two of the matrix, all of the vector and what is left over
                is_larger = np.ones((3, 2), bool)
                matrix = fisher[:6].reshape(3, 2)
                if pattern == (1, 2, -1):  # row by row
                    is_larger = matrix == matrix.max(1, keepdims=True)
                else:  # along the three inputs: two of them and one left over
                    is_larger[:2] = matrix[:2] == matrix[:2].max(0)
                mask = np.append(is_larger, [True, True])
        g = gradient(w, batch)
        return gradient(w + RHO * unit(g) * mask, batch)

    tx = arsam_jax.sparse_sam(
        RHO,
        0.5,
        mask=lambda sparsity: sparse.fisher_mask(
            sparsity, pattern=pattern, num_examples=4, refresh_every=4
        ),
    )
    assert_follows(tx, reference)


def test_fisher_examples_are_those_of_the_caller():
    """Any number of them, here of other training examples than the mini-batch and more."""
    mask, fisher_batch = None, draw_batch(99, size=13)

    def reference(step, w, batch, sampled):
        nonlocal mask
        if step % 4 == 0:
            mask = top((example_gradients(w, fisher_batch) ** 2).mean(0), 4)
        return gradient(w + RHO * unit(gradient(w, batch)) * mask, batch)

    tx = arsam_jax.sparse_sam(RHO, 0.5, mask=lambda s: sparse.fisher_mask(s, refresh_every=4))
    extra = {"fisher_batch": jax.tree.map(jnp.asarray, fisher_batch)}
    assert_follows(tx, reference, extra_args=extra)


SHARD_MAP = pytest.param(
    "shard_map", marks=pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="an older jax")
)


@pytest.mark.parametrize("regime", ["pmap", SHARD_MAP])
def test_fisher_examples_of_the_devices_are_averaged(regime):
    tx = arsam_jax.sparse_sam(0.1, 0.5)
    params, batch, fisher_batch = make_params(), make_batch(0), make_batch(1)

    def mask_of(params, batch, fisher_batch, axis_name=None):
        grads = jax.grad(loss_fn)(params, batch)  # anything finite
        grads = grads if axis_name is None else jax.lax.pmean(grads, axis_name)
        extra = {"example_loss_fn": example_loss_fn, "batch": batch, "axis_name": axis_name}
        extra |= {"grad_fn": lambda p: grads, "fisher_batch": fisher_batch}
        return tx.update(grads, tx.init(params), params, **extra)[1].probe[1].mask

    mapped = functools.partial(mask_of, axis_name="batch")
    if regime == "pmap":
        batches = jax.tree.map(lambda x: x.reshape(4, 4, *x.shape[1:]), (batch, fisher_batch))
        masks = jax.pmap(mapped, "batch", in_axes=(None, 0, 0))(params, *batches)
        mask = jax.tree.map(lambda x: x[0], masks)
    else:
        mesh = jax.sharding.Mesh(jax.devices()[:4], ("batch",))
        specs = (P(), P("batch"), P("batch"))
        sharded = jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=P())
        mask = jax.jit(sharded)(params, batch, fisher_batch)
    on_one = jax.jit(mask_of)
    chex.assert_trees_all_equal(mask, on_one(params, batch, fisher_batch))
    of_the_batch = on_one(params, batch, batch)
    assert any(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x != y).any()), mask, of_the_batch)))


@pytest.mark.parametrize("grow_by", ["gradient", "random"])
@pytest.mark.parametrize("drop_by", ["weight", "gradient", "random"])
def test_sparse_sam_with_dynamic_masks(drop_by, grow_by):
    tx = arsam_jax.sparse_sam(
        RHO,
        0.5,
        mask=lambda sparsity: sparse.dynamic_mask(
            sparsity,
            STEPS,
            drop_rate=0.8,
            drop_by=drop_by,
            grow_by=grow_by,
            refresh_every=4,
            seed=2,
        ),
    )
    first = tx.init(jax.tree.map(jnp.asarray, split(np.zeros(SIZE))))
    mask = join(first.probe[1].mask)
    masks = [mask]

    def reference(step, w, batch, sampled):
        nonlocal mask
        g = gradient(w, batch)
        if step and step % 4 == 0:
            dropped = int(np.round(0.8 * (1 + np.cos(np.pi * step / STEPS)) / 2 * 4))
            keys = jax.random.split(_random.step_key(first.probe[1].key, jnp.int32(step)))
            draws = [np.asarray(jax.random.uniform(key, [SIZE], jnp.float32)) for key in keys]
            drop_scores = {"weight": np.abs(w), "gradient": np.abs(g), "random": draws[0]}[drop_by]
            grow_scores = {"gradient": np.abs(g), "random": draws[1]}[grow_by]
            is_dropped = top(np.where(mask, -drop_scores, -np.inf), dropped)
            mask = (mask & ~is_dropped) | top(np.where(mask, -np.inf, grow_scores), dropped)
            masks.append(mask)
        return gradient(w + RHO * unit(g) * mask, batch)

    assert_follows(tx, reference)
    assert {m.sum() for m in masks} == {4}  # the density never changes
    assert len({tuple(m) for m in masks}) > 2  # the mask does


def test_dynamic_masks_drop_by_gradient_and_grow_at_random_by_default():
    rng = np.random.default_rng(0)
    params, grads = ({"w": jnp.asarray(rng.normal(size=50))} for _ in range(2))

    def refreshed(**how):
        mask = sparse.dynamic_mask(0.5, 20, refresh_every=1, **how)
        return mask.update(grads, mask.init(params), params, step=jnp.int32(1))[1].mask

    chex.assert_trees_all_equal(refreshed(), refreshed(drop_by="gradient", grow_by="random"))


@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("kind", ["fisher", "dynamic", "dynamic random"])
def test_density_is_exact_at_every_refresh(sparsity, kind):
    def make_mask(sparsity):
        if kind == "fisher":
            return sparse.fisher_mask(sparsity, refresh_every=2)
        drop_by = "random" if kind == "dynamic random" else "weight"
        return sparse.dynamic_mask(sparsity, 8, refresh_every=2, drop_by=drop_by)

    params = make_params()
    size = sum(x.size for x in jax.tree.leaves(params))
    tx = arsam_jax.sparse_sam(0.1, sparsity, mask=make_mask)
    step, state = jax.jit(make_step(tx)), tx.init(params)
    for i in range(9):
        mask = state.probe[1].mask
        live = sum(int(x.sum()) for x in jax.tree.leaves(mask))
        assert live == size - int(np.ceil(size * sparsity))
        np.testing.assert_allclose(sparse.density(mask, params), live / size, rtol=1e-6)
        params, state = step(params, state, make_batch(i))


def test_masks_are_refreshed_when_due_even_if_that_step_is_not_sampled():
    direction = optax.chain(normalize(), sparse.fisher_mask(0.5, refresh_every=4))
    tx = sharpness_aware(0.1, probe=probe.perturb(direction), sampling=sampling.every_k(3))
    dues = []
    params, state, step = make_params(), None, jax.jit(make_step(tx))
    state = tx.init(params)
    for i in range(12):
        params, state = step(params, state, make_batch(i))
        dues.append(int(state.probe[1].due))
    assert dues == [4] * 6 + [10] * 6  # refreshed at 0 and 6; due at 10, sampled next at 12


@pytest.mark.parametrize("num_given", [None, 9])
def test_a_refresh_costs_nothing_on_other_steps(num_given):
    """Nor do the examples that are given on each of them."""
    executed = []
    extra = {"fisher_batch": draw_batch(99, num_given)} if num_given else {}
    tx = arsam_jax.sparse_sam(0.1, 0.5, mask=lambda s: sparse.fisher_mask(s, refresh_every=4))

    @jax.jit
    def update(params, state, batch, extra):
        def counted(params, examples):
            if jax.tree.leaves(examples)[0].shape[0] == 1:  # one by one, as in a refresh
                jax.debug.callback(lambda: executed.append(1))
            return jax_example_loss_fn(params, examples)

        def grad_fn(params):
            return jax.grad(lambda p: jax_example_loss_fn(p, batch).mean())(params)

        extra = {"grad_fn": grad_fn, "example_loss_fn": counted, "batch": batch} | extra
        return tx.update(grad_fn(params), state, params, **extra)

    params = jax.tree.map(jnp.asarray, split(np.ones(SIZE)))
    state = tx.init(params)
    counts = []
    for i in range(8):
        executed.clear()
        _, state = update(params, state, jax.tree.map(jnp.asarray, draw_batch(i)), extra)
        jax.block_until_ready(state)
        jax.effects_barrier()
        counts.append(len(executed))
    assert counts == [num_given or BATCH, 0, 0, 0] * 2


@pytest.mark.parametrize("kind", ["unstructured", "structured", "dynamic"])
def test_masks_over_leaves_of_several_dtypes(kind):
    """Compared in the widest: each mask is that of the same numbers in float64."""

    def make_mask(sparsity):
        if kind == "dynamic":
            how = {"drop_by": "weight", "grow_by": "gradient"}
            return sparse.dynamic_mask(sparsity, 20, refresh_every=1, **how)
        return sparse.fisher_mask(sparsity, pattern=kind)

    tx = arsam_jax.sparse_sam(0.1, 0.5, mask=make_mask)
    rng = np.random.default_rng(3)
    like = {
        "half": jnp.zeros((3, 2), jnp.bfloat16),
        "single": jnp.zeros(5, jnp.float32),
        "double": jnp.zeros(4, jnp.float64),
        "complex": jnp.zeros(2, jnp.complex64),
    }
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)).astype(x.dtype), like)
    params["single"] *= 4  # or the structured mask would be the first one
    batch = jnp.asarray(rng.normal(size=(6, 4)))

    def losses(params, batch):
        size = sum(jnp.sum(jnp.square(jnp.abs(x)).astype(jnp.float64)) for x in leaves(params))
        return jnp.square(batch @ params["double"].astype(jnp.float64)) * jnp.sqrt(size)

    def masks(params):
        def grad_fn(params):
            return jax.grad(lambda p: losses(p, batch).mean())(params)

        extra = {"grad_fn": grad_fn, "example_loss_fn": losses, "batch": batch}
        state = tx.init(params)
        state = state._replace(step=jnp.int32(1))  # when a dynamic mask is first due
        update = jax.jit(lambda params: tx.update(grad_fn(params), state, params, **extra))
        return state.probe[1].mask, update(params)[1].probe[1].mask

    leaves = jax.tree.leaves
    wide = {k: x.astype(jnp.complex128 if k == "complex" else float) for k, x in params.items()}
    (first, mask), (_, expected) = masks(params), masks(wide)
    chex.assert_trees_all_equal(mask, expected)
    assert any((x != y).any() for x, y in zip(leaves(first), leaves(mask), strict=True))


@pytest.mark.parametrize("pattern", ["unstructured", "structured", (1, 2)])
def test_masks_over_a_leaf_without_numbers(pattern):
    params = {"a": jnp.zeros((0, 2)), "b": jnp.ones((2, 2)), "c": jnp.ones((2, 2))}
    tx = arsam_jax.sparse_sam(0.1, 0.5, mask=lambda s: sparse.fisher_mask(s, pattern=pattern))

    def losses(params, batch):
        return batch * (params["b"].sum() + 2 * params["c"].sum())

    batch = jnp.ones(3)
    grads = jax.grad(lambda p: losses(p, batch).mean())(params)
    extra = {"grad_fn": lambda p: grads, "example_loss_fn": losses, "batch": batch}
    with jax.debug_nans(True):
        mask = tx.update(grads, tx.init(params), params, **extra)[1].probe[1].mask
    if pattern == (1, 2):
        assert mask["b"].tolist() == mask["c"].tolist() == [[True, True], [False, False]]
    else:
        assert (bool(jnp.any(mask["b"])), bool(jnp.all(mask["c"]))) == (False, True)


@pytest.mark.parametrize("axis", [-3, -2, -1, 0, 1])
def test_groups_along_an_axis(axis):
    """3 of every 4; the 5 of an axis are a group and one left over, which stays."""
    scores = np.random.default_rng(0).normal(size=(4, 5, 8))
    expected = np.zeros(scores.shape, bool)
    rows, kept = np.moveaxis(scores, axis, -1), np.moveaxis(expected, axis, -1)  # views
    for place in np.ndindex(rows.shape[:-1]):
        length = rows.shape[-1]
        for start in range(0, length, 4):
            group = rows[place][start : start + 4]
            kept[place][start : start + 4] = (group > group.min()) | (len(group) < 4)
    mask = sparse.keep_largest(jnp.asarray(scores), 0.0, (3, 4, axis))
    np.testing.assert_array_equal(mask, expected)
    by_default = sparse.keep_largest(jnp.asarray(scores), 0.0, (3, 4))
    assert np.array_equal(mask, by_default) == (axis in (-2, 1))


def test_masks_of_equal_scores_and_of_one_live_weight():
    """Ties go to the earlier weight; a dynamic mask of one weight moves it or leaves it."""
    tied = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}
    mask = sparse.keep_largest(tied, 0.55)
    assert [x.reshape(-1).tolist() for x in jax.tree.leaves(mask)] == [
        [True] * 4 + [False] * 2,
        [False] * 4,
    ]
    params = {"w": jnp.ones(8)}
    for drop_rate, moves in ((1.0, True), (0.0, False)):
        mask = sparse.dynamic_mask(7 / 8, 10**6, drop_rate=drop_rate, refresh_every=1)
        update, places = jax.jit(mask.update), []
        state = mask.init(params)
        for i in range(8):
            _, state = update(params, state, params, step=jnp.int32(i))
            assert int(state.mask["w"].sum()) == 1
            places.append(int(state.mask["w"].argmax()))
        assert (len(set(places)) > 1) == moves


def test_the_implicit_form_of_the_authors_is_sam_given_their_first_gradient():
    """Theirs: W ⊙ m in the input-gradient products of the first backward pass, then plain SAM."""

    @jax.custom_vjp
    def product(x, weights, mask):
        return x @ weights

    product.defvjp(
        lambda x, weights, mask: (x @ weights, (x, weights, mask)),
        lambda saved, g: (g @ (saved[1] * saved[2]).T, saved[0].T @ g, None),
    )
    rng = np.random.default_rng(5)
    x, first, last = (rng.normal(size=s) for s in ((6, 3), (3, 4), (4, 2)))
    mask = rng.integers(0, 2, size=last.shape).astype(float)

    def loss(params, mask):
        return jnp.sum(jnp.square(product(jnp.tanh(x @ params[0]), params[1], mask))) / 2

    def numpy_gradient(first, last, mask):
        hidden = np.tanh(x @ first)
        error = hidden @ last
        return x.T @ ((error @ (last * mask).T) * (1 - hidden**2)), hidden.T @ error

    g = numpy_gradient(first, last, mask)
    norm = np.sqrt(sum((y**2).sum() for y in g))
    expected = numpy_gradient(first + RHO * g[0] / norm, last + RHO * g[1] / norm, 1.0)
    params, tx = (jnp.asarray(first), jnp.asarray(last)), arsam_jax.sam(RHO)
    everything = jnp.ones_like(mask)
    updates, _ = tx.update(
        jax.grad(loss)(params, jnp.asarray(mask)),
        tx.init(params),
        params,
        grad_fn=lambda params: jax.grad(loss)(params, everything),
    )
    chex.assert_trees_all_close(updates, expected, rtol=1e-12)


def matrix_products(tx, width=64, **kwargs):
    """In the compiled step of a network of two layers."""
    params = {"in": jnp.ones((width, width)), "out": jnp.ones((width, width))}

    def example_loss_fn(params, batch):
        return jnp.sum(jnp.tanh(jnp.tanh(batch @ params["in"]) @ params["out"]), axis=1)

    def step(params, state, batch):
        def grad_fn(params):
            return jax.grad(lambda p: example_loss_fn(p, batch).mean())(params)

        return tx.update(
            grad_fn(params),
            state,
            params,
            grad_fn=grad_fn,
            previous_grad_fn=grad_fn,
            example_loss_fn=example_loss_fn,
            batch=batch,
            example_index=np.arange(128),
            **kwargs,
        )

    lowered = jax.jit(step).lower(params, tx.init(params), jnp.ones((128, width)))
    return lowered.compile().as_text().count(" dot(")


def test_methods_that_leave_the_gradient_unread_do_not_pay_for_it():
    """A gradient of two layers is two matrix products forward and three backward."""
    assert matrix_products(optax.with_extra_args_support(optax.sgd(0.1))) == 5
    assert matrix_products(arsam_jax.momentum_sam(0.1)) == 5
    assert matrix_products(arsam_jax.sampa(0.1, 0.1)) == 10
    assert matrix_products(arsam_jax.m_sam(0.1, 1)) == 10
    assert matrix_products(arsam_jax.rw_sam(0.1)) == 13  # two gradients and a forward derivative
    assert matrix_products(arsam_jax.rw_sam(0.1, delta=0.01)) == 12  # and a forward pass


def test_what_implicit_structured_masks_save_and_what_they_do_not():
    mask = {"in": False, "out": True}

    def cost(direction, **kwargs):
        return matrix_products(sharpness_aware(0.1, probe=probe.perturb(direction)), **kwargs)

    is_dropped = jax.tree.map(lambda keep: not keep, mask)
    drop = optax.masked(optax.set_to_zero(), is_dropped)
    explicit = optax.chain(normalize(), drop)
    implicit = optax.chain(drop, normalize(), drop)
    # Of ten products both forms share one, that of "in" forward, whose weights both passes see
    # alike. The explicit form saves no more, since ‖g‖ needs every gradient. The first backward
    # pass of the implicit one stops above "in", if the metrics do not read the gradient either.
    assert cost(explicit) == 9
    assert cost(implicit) == 7
    assert cost(implicit, measure=True) == 9


def test_esam_computes_on_the_selected_examples_only():
    sizes = []

    def example_loss_fn(params, batch):
        sizes.append(batch[0].shape[0])
        return jax_example_loss_fn(params, batch)

    tx = arsam_jax.esam(0.1, gamma=0.5)
    params = jax.tree.map(jnp.asarray, split(np.ones(SIZE)))
    batch = jax.tree.map(jnp.asarray, draw_batch(0))
    tx.update(
        params,
        tx.init(params),
        params,
        grad_fn=lambda w: pytest.fail("not on the whole batch"),
        example_loss_fn=example_loss_fn,
        batch=batch,
    )
    assert sizes == [BATCH, BATCH, BATCH // 2]


# Degenerate cases


@pytest.mark.parametrize(
    "tx",
    [
        arsam_jax.sam_every_k(0.1, 1),
        arsam_jax.looksam(0.1, 1),
        arsam_jax.ae_sam(0.1, 20, lambda_1=-1e6, lambda_2=-1e6),
        arsam_jax.esam(0.1, beta=1, gamma=1),
        arsam_jax.gradient_norm_penalty(0.1, 1.0),
        arsam_jax.gsam(0.1, 0.0),
        arsam_jax.gam(0.3, grad_rho=0.1, alpha=1, gamma=0),
        arsam_jax.wsam(0.1, 0.5),
        arsam_jax.multi_step_sam(0.1, 1),
        arsam_jax.friendly_sam(0.1, sigma=0),
        arsam_jax.final_phase_sam(0.1, 20, 1.0),
        arsam_jax.m_sam(0.1, 1),
        arsam_jax.rw_sam(0.1, inverse_temperature=0),
        arsam_jax.k_sam(0.1, 1),
        arsam_jax.ausam(0.1, 16, 1, share=1),
        arsam_jax.ausam(0.1, 16, 20),  # in its first epoch
        arsam_jax.sparse_sam(0.1, 0.0),
        arsam_jax.sparse_sam(0.1, 0.0, mask=lambda s: sparse.dynamic_mask(s, 20)),
    ],
    ids=[
        *("every_1", "looksam_1", "ae_sam", "esam", "penalty", "gsam", "gam", "wsam", "multi_step"),
        *("friendly", "final_phase", "m_sam", "rw_sam", "k_sam", "ausam", "ausam_first_epoch"),
        *("fisher", "dynamic"),
    ],
)
def test_degenerate_cases_that_are_sam(tx):
    ours, _ = train(optax.chain(tx, BASE), 20)
    sam, _ = train(optax.chain(arsam_jax.sam(0.1), BASE), 20)
    chex.assert_trees_all_close(ours, sam, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "tx",
    [
        arsam_jax.gradient_norm_penalty(0.1, 0.0),
        arsam_jax.final_phase_sam(0.1, 20, 0.0),
        arsam_jax.ae_sam(0.1, 20, lambda_1=1e6, lambda_2=1e6),
        arsam_jax.wsam(0.1, 0.0),
        *(make(0.0) for make in (arsam_jax.usam, arsam_jax.asam, arsam_jax.momentum_sam)),
        arsam_jax.m_sam(0.0, 4),
        arsam_jax.gam(0.0),
        arsam_jax.sampa(0.0, 0.05),
    ],
    ids=[
        *("penalty", "final_phase", "ae_sam", "wsam", "usam_0", "asam_0", "momentum_0"),
        *("m_sam_0", "gam_0", "sampa_0"),
    ],
)
def test_degenerate_cases_that_are_the_base_optimizer_bit_for_bit(tx):
    ours, _ = train(optax.chain(tx, BASE), 20)
    base, _ = train(optax.with_extra_args_support(BASE), 20)
    chex.assert_trees_all_equal(ours, base)


# ARSAM's sampling and reuse with other parts


@pytest.mark.parametrize(
    ("chosen_probe", "strength"),
    [
        (probe.perturb(), 0.6),
        (probe.perturb(normalize_by_weights(0.1)), 1),
        (probe.perturb(optax.chain(normalize(), sparse.fisher_mask(0.5, refresh_every=7))), 1),
        (probe.microbatched(3), 1),
        (selection.largest_losses(0.5), 1),
    ],
    ids=["gradient_norm_penalty", "asam", "sparse", "m_sam", "k_sam"],
)
def test_arsams_sampling_and_reuse_combine_with(chosen_probe, strength):
    """A reuse step emits g + a PSF with the PSF of the last sampled step, whatever the probe."""
    policy = sampling.autoregressive(0.8, segment_length=6, initial_samples=2, seed=3)
    tx = sharpness_aware(
        RHO,
        probe=chosen_probe,
        sampling=policy,
        correction=correction.reuse_psf(2, strength=strength),
    )
    alone = sharpness_aware(RHO, probe=chosen_probe)
    alone_state = alone.init(jax.tree.map(jnp.asarray, split(np.zeros(SIZE))))
    psf, age, kinds = np.zeros(SIZE), None, []

    def reference(step, w, batch, sampled):
        nonlocal psf, age, alone_state
        g = gradient(w, batch)
        age = None if age is None else age + 1
        if sampled:
            params, examples = split(w), jax.tree.map(jnp.asarray, batch)
            g_alone, alone_state = alone.update(
                jax.tree.map(jnp.asarray, split(g)),
                alone_state._replace(step=jnp.int32(step)),
                jax.tree.map(jnp.asarray, params),
                grad_fn=lambda p: jax.grad(lambda p: jax_example_loss_fn(p, examples).mean())(p),
                example_loss_fn=jax_example_loss_fn,
                batch=examples,
            )
            psf, age = join(g_alone) - g, 0
        kinds.append("sampled" if sampled else "reuse" if age in (1, 2) else "plain")
        return g if kinds[-1] == "plain" else g + strength * psf

    state = assert_follows(tx, reference)
    assert {"sampled", "reuse", "plain"} == set(kinds)
    assert state.sampling.ratio > 0


def test_looksam_reuses_no_rounding():
    """g_A of w⁴ is parallel to g, so nothing is orthogonal to it but what rounding leaves."""
    tx = arsam_jax.looksam(0.1, k=2)

    def grad_fn(w):
        return 4 * w**3

    for start in np.linspace(0.5, 2, 97):
        w = jnp.asarray([start], jnp.float32)
        _, state = tx.update(grad_fn(w), tx.init(w), w, grad_fn=grad_fn)
        reused, _ = tx.update(grad_fn(w), state, w, grad_fn=grad_fn)
        chex.assert_trees_all_equal(reused, grad_fn(w))


def test_looksam_at_a_radius_lost_in_rounding_is_the_base_optimizer():
    rng = np.random.default_rng(0)
    hessian = jnp.asarray(rng.normal(size=(40, 40)), jnp.float32)
    hessian = hessian @ hessian.T
    w = jnp.asarray(rng.normal(size=40), jnp.float32)

    def reused(rho):
        tx = arsam_jax.looksam(rho, k=2)
        _, state = tx.update(hessian @ w, tx.init(w), w, grad_fn=lambda w: hessian @ w)
        return tx.update(hessian @ w, state, w, grad_fn=lambda w: hessian @ w)[0]

    chex.assert_trees_all_equal(reused(1e-9), hessian @ w)
    assert np.linalg.norm(reused(1e-2) - hessian @ w) > 0.5 * np.linalg.norm(hessian @ w)


# Bad arguments


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: arsam_jax.sam_every_k(0.1, 0), "k"),
        (lambda: arsam_jax.looksam(0.1, 5, -1), "alpha"),
        (lambda: arsam_jax.looksam(0.1, 0), "k"),
        (lambda: arsam_jax.ae_sam(0.1, 0), "total_steps"),
        (lambda: arsam_jax.ae_sam(0.1, 10, decay=1), "decay"),
        (lambda: arsam_jax.ae_sam(0.1, 10, lambda_1=np.nan), "lambda_1"),
        (lambda: arsam_jax.esam(0.1, beta=0), "beta"),
        (lambda: arsam_jax.esam(0.1, gamma=1.5), "gamma"),
        (lambda: arsam_jax.esam(0.1, per="layer"), "per"),
        (lambda: arsam_jax.gradient_norm_penalty(0.1, -0.1), "strength"),
        (lambda: arsam_jax.gradient_norm_penalty(-0.1, 0.1), "rho"),
        (lambda: arsam_jax.asam(0.1, eta=-1), "eta"),
        (lambda: arsam_jax.gsam(0.1, np.inf), "alpha"),
        (lambda: arsam_jax.multi_step_sam(0.1, 0), "num_steps"),
        (lambda: arsam_jax.momentum_sam(0.1, decay=1), "decay"),
        (lambda: arsam_jax.gam(0.1, grad_rho=-1), "grad_rho"),
        (lambda: arsam_jax.gam(0.1, alpha=1.1), "alpha"),
        (lambda: arsam_jax.gam(0.1, beta=-0.1), "beta"),
        (lambda: arsam_jax.gam(0.1, gamma=-1), "gamma"),
        (lambda: arsam_jax.wsam(0.1, 1), "gamma"),
        (lambda: arsam_jax.sampa(0.1, -1), "learning_rate"),
        (lambda: arsam_jax.sampa(0.1, 0.1, interpolation=2), "interpolation"),
        (lambda: arsam_jax.friendly_sam(0.1, sigma=-1), "sigma"),
        (lambda: arsam_jax.friendly_sam(0.1, decay=1), "decay"),
        (lambda: arsam_jax.final_phase_sam(0.1, 10, 1.1), "share"),
        (lambda: arsam_jax.m_sam(0.1, 0), "num_microbatches"),
        (lambda: arsam_jax.rw_sam(0.1, inverse_temperature=-1), "inverse_temperature"),
        (lambda: arsam_jax.rw_sam(0.1, delta=0), "delta"),
        (lambda: arsam_jax.k_sam(0.1, 0), "share"),
        (lambda: arsam_jax.k_sam(0.1, jnp.float32(0.5)), "share"),
        (lambda: arsam_jax.ausam(0.1, 0, 5), "num_examples"),
        (lambda: arsam_jax.ausam(0.1, jnp.int32(9), 5), "num_examples"),
        (lambda: arsam_jax.ausam(0.1, 9, 0), "steps_per_epoch"),
        (lambda: arsam_jax.ausam(0.1, 9, 5, share=1.1), "share"),
        (lambda: arsam_jax.ausam(0.1, 9, 5, rise_epochs=0), "rise_epochs"),
        (lambda: arsam_jax.ausam(0.1, 9, 5, min_weight=0), "min_weight"),
        (lambda: arsam_jax.ausam(0.1, 9, 5, max_weight=0.05), "max_weight"),
        (lambda: arsam_jax.ausam(0.1, 9, 5, seed=-1), "seed"),
        (lambda: arsam_jax.sparse_sam(0.1, 1.0), "sparsity"),
        (lambda: arsam_jax.sparse_sam(0.1, mask=sparse.fisher_mask(0.5)), "mask"),
        (lambda: sparse.fisher_mask(0.5, pattern="rows"), "pattern"),
        (lambda: sparse.fisher_mask(0.5, pattern=(4, 2)), "pattern's M"),
        (lambda: sparse.fisher_mask(0.5, pattern=(1, 2, 3, 4)), "pattern"),
        (lambda: sparse.fisher_mask(0.5, pattern=(1, 2, 0.5)), "pattern's axis"),
        (lambda: sparse.keep_largest(jnp.ones((2, 2)), 0.5, (1, 2, 2)), "pattern's axis"),
        (lambda: sparse.keep_largest(jnp.ones(3), 0.5, "nm"), "pattern"),
        (lambda: arsam_jax.looksam(0.1, reuse_dtype=jnp.int32), "reuse_dtype"),
        (lambda: sparse.fisher_mask(0.5, num_examples=0), "num_examples"),
        (lambda: sparse.fisher_mask(0.5, refresh_every=0), "refresh_every"),
        (lambda: sparse.dynamic_mask(0.5, 10, drop_rate=2), "drop_rate"),
        (lambda: sparse.dynamic_mask(0.5, 10, drop_by="size"), "drop_by"),
        (lambda: sparse.dynamic_mask(0.5, 10, grow_by="weight"), "grow_by"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, name):
    with pytest.raises((ValueError, TypeError), match=rf"^{name} must be .*, got "):
        make()


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
    assert not np.isfinite(updates).all()
    chex.assert_trees_all_equal(after.probe, state.probe)


def test_where_all_gradients_are_zero_nothing_moves_and_nothing_is_nan():
    zeros, params = jnp.zeros(3), jnp.ones(3)
    functions = dict.fromkeys(("grad_fn", "previous_grad_fn"), jnp.zeros_like)
    for tx in (arsam_jax.gam(0.1), arsam_jax.wsam(0.1), arsam_jax.sampa(0.1, 0.1)):
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(zeros, state, params, **functions)
            chex.assert_trees_all_equal(updates, zeros)
            chex.assert_tree_all_finite(state)


def update_with(tx, **extra_args):
    params = make_params()
    extra_args = {"example_index": np.arange(16), **extra_args}
    grads = jax.grad(loss_fn)(params, make_batch(0))
    return tx.update(grads, tx.init(params), params, grad_fn=lambda p: grads, **extra_args)


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


def test_wrong_examples_for_a_mask_are_named():
    tx, (x, y) = arsam_jax.sparse_sam(0.1), make_batch(0)
    with pytest.raises(ValueError, match="leaf of fisher_batch must have the same first axis"):
        update_with(tx, example_loss_fn=example_loss_fn, batch=(x, y), fisher_batch=(x, y[:3]))
    with pytest.raises(ValueError, match="fisher_batch must hold at least one example"):
        update_with(tx, example_loss_fn=example_loss_fn, fisher_batch=(x[:0], y[:0]))
    tx = arsam_jax.sparse_sam(0.1, mask=lambda s: sparse.fisher_mask(s, num_examples=6))
    with pytest.raises(ValueError, match="at most 5, the examples of fisher_batch, got 6"):
        update_with(tx, example_loss_fn=example_loss_fn, fisher_batch=(x[:5], y[:5]))
    update_with(tx, example_loss_fn=example_loss_fn, fisher_batch=(x[:6], y[:6]))


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


def test_every_alias_is_public_and_in_the_contract_suite():
    functions = inspect.getmembers(arsam_jax.alias, inspect.isfunction)
    aliases = {name for name, function in functions if function.__module__ == "arsam_jax.alias"}
    assert {name for name in aliases if name[0] != "_"} == set(methods.METHODS)
    for name, method in methods.METHODS.items():
        assert method.make is getattr(arsam_jax, name)
        assert name in arsam_jax.__all__
        assert name in METHODS
        doc = getattr(arsam_jax, name).__doc__
        source = "docs/frontier.md" if name == "budgeted_sam" else "References:"  # our own
        for part in ("Costs", "keeps", "Args:", source):
            assert part in doc, (name, part)


@pytest.mark.parametrize("huge", [1e18, np.inf, np.nan])
def test_one_huge_gradient_does_not_end_a_policy_that_follows_gradient_norms(huge):
    policy = sampling.gradient_norm_gate(100)
    norms = np.exp(0.3 * np.random.default_rng(0).normal(size=100)).astype(np.float32)

    def decisions(norms):
        state, found = policy.init(), []
        for step, norm in enumerate(norms):
            sampled, state = policy.decide(state, jnp.int32(step), jnp.asarray(norm))
            found.append(bool(sampled))
        return found

    usual = decisions(norms)
    norms[20] = huge
    after = slice(60, None)
    assert decisions(norms)[after].count(True) == pytest.approx(usual[after].count(True), abs=2)


def test_a_norm_policy_follows_a_scale_that_stays():
    norms = np.exp(0.3 * np.random.default_rng(0).normal(size=200)).astype(np.float32)
    norms[:20] *= 1e-12
    policy = sampling.gradient_norm_gate(200)

    def step(state, seen):
        sampled, state = policy.decide(state, *seen)
        return state, sampled

    _, sampled = jax.lax.scan(step, policy.init(), (jnp.arange(200, dtype=jnp.int32), norms))
    assert 0.1 < sampled[60:].mean() < 0.6


@pytest.mark.parametrize(
    "make",
    [
        lambda: arsam_jax.ae_sam(0.1, 40),
        lambda: arsam_jax.arsam(0.1, 1.0, segment_length=5, initial_samples=3),
    ],
    ids=["ae_sam", "arsam"],
)
def test_decisions_do_not_depend_on_the_scale_of_the_loss(make):
    tx = make()
    batches = jax.tree.map(lambda *x: jnp.stack(x), *map(make_batch, range(40)))

    @jax.jit
    def decisions(scale):
        def step(carry, batch):
            params, state = carry

            def grad_fn(params):
                return jax.grad(lambda params: scale * loss_fn(params, batch))(params)

            updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
            params = jax.tree.map(lambda p, u: p - 0.05 * (u / scale), params, updates)
            return (params, state), state.metrics.sampled

        params = make_params()
        return jax.lax.scan(step, (params, tx.init(params)), batches)[1]

    usual = decisions(1.0)
    assert 0 < usual.sum() < 40
    for scale in (1e-15, 1e15):
        np.testing.assert_array_equal(decisions(scale), usual)


def test_final_phase_counts_exactly_and_a_share_of_nothing_takes_nothing():
    steps = 2**25 + 1  # beyond what float32 counts
    policy = sampling.final_phase(steps, 1 / steps)
    assert [bool(policy.decide((), jnp.int32(i), 1.0)[0]) for i in (steps - 2, steps - 1)] == [
        False,
        True,
    ]
    never = sampling.final_phase(10, 0)
    assert not any(never.decide((), jnp.int32(i), 1.0)[0] for i in range(20))


@pytest.mark.parametrize(("sparsity", "live"), [(0.07, 93), (0.55, 45), (0.5, 50), (0.999, 0)])
def test_a_mask_keeps_the_number_that_its_sparsity_says(sparsity, live):
    scores = jnp.arange(100.0)
    assert int(sparse.keep_largest(scores, sparsity, "unstructured").sum()) == live
