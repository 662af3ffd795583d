"""Masks of sparse SAM: against NumPy, exact densities, refreshes that cost nothing when not due."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import arsam_jax
from arsam_jax import _random, probe, sampling, sharpness_aware, sparse
from arsam_jax.ascent import normalize
from tests import least_squares, reference
from tests.least_squares import BATCH, SIZE, STEPS, assert_follows, draw_batch, join
from tests.problem import (
    example_loss_fn,
    loss_fn,
    make_batch,
    make_params,
    make_step,
    matrix_products,
    update_with,
)
from tests.versions import cases

pytestmark = pytest.mark.usefixtures("x64")

RHO = 0.3


@pytest.mark.parametrize("pattern", ["unstructured", "structured", (1, 2), (1, 2, -1)])
def test_sparse_sam_with_fisher_masks(pattern):
    tx = arsam_jax.sparse_sam(
        RHO,
        0.5,
        mask=lambda sparsity: sparse.fisher_mask(
            sparsity, pattern=pattern, num_examples=4, refresh_every=4
        ),
    )
    mask = reference.fisher_mask(pattern, 4, lambda batch: (batch[0][:4], batch[1][:4]))
    assert_follows(tx, reference.sparse_sam(RHO, mask))


def test_fisher_examples_are_those_of_the_caller():
    """Any number of them, here of other training examples than the mini-batch and more."""
    fisher_batch = draw_batch(99, size=13)
    tx = arsam_jax.sparse_sam(RHO, 0.5, mask=lambda s: sparse.fisher_mask(s, refresh_every=4))
    mask = reference.fisher_mask("unstructured", 4, lambda batch: fisher_batch)
    extra = {"fisher_batch": jax.tree.map(jnp.asarray, fisher_batch)}
    assert_follows(tx, reference.sparse_sam(RHO, mask), extra_args=extra)


@pytest.mark.parametrize("regime", cases(["pmap", "shard_map"]))
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


@pytest.mark.parametrize(
    ("drop_by", "grow_by"), [("weight", "gradient"), ("gradient", "random"), ("random", "random")]
)
def test_sparse_sam_with_dynamic_masks(drop_by, grow_by):
    how = {"drop_rate": 0.8, "drop_by": drop_by, "grow_by": grow_by, "refresh_every": 4}
    tx = arsam_jax.sparse_sam(
        RHO, 0.5, mask=lambda sparsity: sparse.dynamic_mask(sparsity, STEPS, seed=2, **how)
    )
    first = tx.init(least_squares.make_params(np.zeros(SIZE))).probe[1]

    def draws(step):
        keys = jax.random.split(_random.step_key(first.key, jnp.int32(step)))
        return [np.asarray(jax.random.uniform(key, [SIZE], jnp.float32)) for key in keys]

    mask = reference.DynamicMask(join(first.mask), STEPS, draws=draws, **how)
    assert_follows(tx, reference.sparse_sam(RHO, mask))
    assert {m.sum() for m in mask.masks} == {4}  # the density never changes
    assert len({tuple(m) for m in mask.masks}) > 2  # the mask does


def test_dynamic_masks_drop_by_gradient_and_grow_at_random_by_default():
    rng = np.random.default_rng(0)
    params, grads = ({"w": jnp.asarray(rng.normal(size=50))} for _ in range(2))

    def refreshed(**how):
        mask = sparse.dynamic_mask(0.5, 20, refresh_every=1, **how)
        return mask.update(grads, mask.init(params), params, step=jnp.int32(1))[1].mask

    chex.assert_trees_all_equal(refreshed(), refreshed(drop_by="gradient", grow_by="random"))


@pytest.mark.parametrize("sparsity", [0.2, 0.9])
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


@pytest.mark.parametrize(
    ("sparsity", "live"), [(0.0, 100), (0.07, 93), (0.55, 45), (0.5, 50), (0.999, 0)]
)
def test_a_mask_keeps_the_number_that_its_sparsity_says(sparsity, live):
    scores = jnp.arange(100.0)
    assert int(sparse.keep_largest(scores, sparsity, "unstructured").sum()) == live


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
            return least_squares.example_loss_fn(params, examples)

        def grad_fn(params):
            return jax.grad(lambda p: least_squares.example_loss_fn(p, batch).mean())(params)

        extra = {"grad_fn": grad_fn, "example_loss_fn": counted, "batch": batch} | extra
        return tx.update(grad_fn(params), state, params, **extra)

    params = least_squares.make_params(np.ones(SIZE))
    state = tx.init(params)
    counts = []
    for i in range(8):
        executed.clear()
        _, state = update(params, state, jax.tree.map(jnp.asarray, draw_batch(i)), extra)
        jax.block_until_ready(state)
        jax.effects_barrier()
        counts.append(len(executed))
    assert counts == [num_given or BATCH, 0, 0, 0] * 2


@pytest.mark.parametrize("kind", ["structured", "dynamic"])
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


@pytest.mark.parametrize("axis", [-2, -1, 0])
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


@pytest.mark.parametrize("bad", ["batch", "fisher_batch"])
def test_a_fisher_mask_that_could_not_be_made_is_made_on_the_next_step(bad):
    """Not finite at step 0, in the mini-batch or in the Fisher examples alone."""
    tx = arsam_jax.sparse_sam(0.1, 0.5, mask=sparse.fisher_mask)
    params, batches = make_params(), {"batch": make_batch(0), "fisher_batch": make_batch(1)}
    broken = batches | {bad: jax.tree.map(lambda x: x * jnp.nan, batches[bad])}

    def step(state, batches):
        grad_fn = lambda p: jax.grad(loss_fn)(p, batches["batch"])  # noqa: E731
        extra = batches | {"grad_fn": grad_fn, "example_loss_fn": example_loss_fn}
        return tx.update(grad_fn(params), state, params, **extra)[1]

    start = tx.init(params)
    state = step(start, broken)
    chex.assert_trees_all_equal(state.probe, start.probe)
    made, expected = step(state, batches).probe[1], step(start, batches).probe[1]
    chex.assert_trees_all_equal(made.mask, expected.mask)
    assert made.due == expected.due + 1
    different = jax.tree.map(lambda x, y: bool((x != y).any()), made.mask, start.probe[1].mask)
    assert any(jax.tree.leaves(different))


def test_a_mask_is_not_due_on_every_step_once_the_step_counter_is_saturated():
    tx = arsam_jax.sparse_sam(0.1, 0.5, mask=lambda s: sparse.dynamic_mask(s, 100))
    params, most = jnp.ones(8), jnp.int32(2**31 - 1)
    state = tx.init(params)._replace(step=most)
    _, state = tx.update(params, state, params, grad_fn=lambda w: w)
    assert state.probe[1].due == most
