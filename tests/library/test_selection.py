"""K-SAM and AUSAM: which examples they take, against NumPy, and what they pay and remember."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import arsam_jax
from arsam_jax import selection, sharpness_aware
from tests import least_squares
from tests.least_squares import (
    BATCH,
    EXAMPLES,
    SIZE,
    assert_follows,
    draw_batch,
    example_loss_fn,
    example_losses,
    gradient,
    join,
)
from tests.problem import make_batch, matrix_products, update_with
from tests.reference import largest_losses, perturbed_and_change

pytestmark = pytest.mark.usefixtures("x64")

RHO = 0.3


def stepper(tx, losses=example_loss_fn):
    """``(state, index) -> (updates, state)`` at fixed parameters and on one batch, jitted."""
    params = least_squares.make_params(np.linspace(-1, 1, SIZE))
    batch = jax.tree.map(jnp.asarray, draw_batch(0))

    @jax.jit
    def step(state, index):
        extra = {"example_loss_fn": losses, "batch": batch, "example_index": index}
        return tx.update(params, state, params, grad_fn=lambda p: p, **extra)

    return step


def take(tx, state, losses=example_loss_fn, index=None):
    return stepper(tx, losses)(state, jnp.arange(BATCH) if index is None else index)


def in_later_epoch(tx, step=10**6, **memory):
    """A state long after the first epoch."""
    state = tx.init(least_squares.make_params(np.ones(SIZE)))
    return state._replace(step=jnp.int32(step), probe=state.probe._replace(**memory))


def test_ausam_draws_without_replacement_by_its_weights():
    tx = arsam_jax.ausam(RHO, EXAMPLES, 5, share=1 / 3)
    means = np.array([0.0, 1, 2, 4, 4, 10])
    total = jnp.ones(EXAMPLES, jnp.float32).at[:BATCH].set(jnp.asarray(means, jnp.float32))
    draws = 4000
    start = in_later_epoch(tx, total=total)
    steps = start.step + jnp.arange(draws, dtype=jnp.int32)
    _, after = jax.vmap(lambda step: take(tx, start._replace(step=step)))(steps)
    drawn = np.asarray(after.probe.times - 1)[:, :BATCH]
    assert (drawn.sum(1) == 2).all()
    assert drawn.max() == 1

    p = 0.1 + 0.4 * means / 10
    p = p / p.sum()
    expected = np.zeros(BATCH)
    for i, j in itertools.permutations(range(BATCH), 2):  # i first, then j of the others
        expected[[i, j]] += p[i] * p[j] / (1 - p[i])
    error = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(drawn.mean(0) - expected) < 4 * error).all()


def test_ausam_takes_its_weights_from_the_positions_in_the_data_set():
    """One example that ε changes a lot, wherever in the batch it is, is drawn most often."""
    tx = arsam_jax.ausam(RHO, EXAMPLES, 5, share=0.01, min_weight=1e-6)
    total = jnp.ones(EXAMPLES, jnp.float32).at[17].set(9)
    state = in_later_epoch(tx, total=total)
    places = jnp.stack([jnp.arange(BATCH).at[place].set(17) for place in range(BATCH)])
    _, after = jax.vmap(lambda index: take(tx, state, index=index))(places)
    drawn = np.asarray(after.probe.times) - 1
    assert (drawn[:, 17] == 1).all()
    assert drawn.sum() == BATCH


def test_examples_that_are_twice_in_a_batch_count_twice():
    tx = arsam_jax.ausam(RHO, EXAMPLES, 5, share=1)
    index = jnp.array([3, 3, 7, 8, 9, 9])
    step = stepper(tx)
    first, again = (step(in_later_epoch(tx, step=i), index)[1].probe for i in (0, 50))
    np.testing.assert_array_equal(first.times[jnp.array([3, 7, 9, 0])], [2, 1, 2, 1])
    np.testing.assert_array_equal(again.times[jnp.array([3, 7, 9, 0])], [3, 2, 3, 1])
    np.testing.assert_allclose(again.total[index], first.total[index] + 1, rtol=1e-6)


@pytest.mark.parametrize("epoch", ["first", "later"])
def test_ausam_at_zero_losses_stays_finite_and_draws_evenly(epoch):
    tx = arsam_jax.ausam(RHO, EXAMPLES, 5)
    state = in_later_epoch(tx, step=0 if epoch == "first" else 50, total=jnp.zeros(EXAMPLES, "f4"))
    updates, state = take(tx, state, losses=lambda p, batch: 0 * example_loss_fn(p, batch))
    assert (join(updates) == 0).all()
    chex.assert_tree_all_finite(state)
    assert (state.probe.total[:BATCH] == 0).all()


def test_k_sam_at_zero_losses_moves_nothing():
    tx = arsam_jax.k_sam(RHO)
    state = tx.init(least_squares.make_params(np.ones(SIZE)))
    updates, state = take(tx, state, losses=lambda p, batch: 0 * example_loss_fn(p, batch))
    assert (join(updates) == 0).all()
    chex.assert_tree_all_finite(state)


def test_a_change_that_is_not_finite_is_not_remembered():
    marked = draw_batch(0)[1][2]

    def losses(params, batch):  # of finite gradients
        offset = jax.lax.stop_gradient(jnp.where(batch[1] == marked, jnp.inf, 0))
        return example_loss_fn(params, batch) + offset

    tx = arsam_jax.ausam(RHO, EXAMPLES, 5)
    updates, state = take(tx, in_later_epoch(tx, step=0), losses=losses)
    chex.assert_tree_all_finite((updates, state.probe))
    assert state.probe.total[2] == 1  # as at the start
    assert (state.probe.times == 1).all()
    assert (state.probe.total[jnp.array([0, 1, 3, 4, 5])] != 1).all()


def test_a_gradient_that_is_not_finite_is_passed_on_and_leaves_the_memory():
    tx = arsam_jax.ausam(RHO, EXAMPLES, 5)
    before = in_later_epoch(tx)
    updates, after = take(tx, before, losses=lambda p, b: example_loss_fn(p, b) * jnp.nan)
    assert np.isnan(join(updates)).all()
    chex.assert_trees_all_equal(after.probe, before.probe)


# Costs


def test_esam_computes_on_the_selected_examples_only():
    sizes = []

    def example_loss_fn(params, batch):
        sizes.append(batch[0].shape[0])
        return least_squares.example_loss_fn(params, batch)

    tx = arsam_jax.esam(0.1, gamma=0.5)
    params = least_squares.make_params(np.ones(SIZE))
    extra = {"example_loss_fn": example_loss_fn, "batch": jax.tree.map(jnp.asarray, draw_batch(0))}

    def update(params):
        fail = lambda w: pytest.fail("not on the whole batch")  # noqa: E731
        return tx.update(params, tx.init(params), params, grad_fn=fail, **extra)

    jax.eval_shape(update, params)
    assert sizes == [BATCH, BATCH, BATCH // 2]


def executed_sizes(tx, steps):
    """The number of examples in each evaluation of the losses, step by step."""
    seen, found = [], []

    def counted(params, batch):
        jax.debug.callback(lambda: seen.append(len(batch[0])))
        return example_loss_fn(params, batch)

    state, step = tx.init(least_squares.make_params(np.ones(SIZE))), stepper(tx, counted)
    for _ in range(steps):
        seen.clear()
        _, state = step(state, jnp.arange(BATCH))
        jax.block_until_ready(state)
        jax.effects_barrier()
        found.append(sorted(seen))
    return found


def test_executed_evaluations_are_of_the_chosen_examples():
    assert executed_sizes(arsam_jax.k_sam(RHO), 2) == [[3, 3, BATCH]] * 2
    ausam = arsam_jax.ausam(RHO, EXAMPLES, 2)
    assert executed_sizes(ausam, 4) == [[BATCH, BATCH]] * 2 + [[3, 3]] * 2


def test_the_gradient_of_the_caller_is_dropped():
    """Two matrix products are a forward pass, five a gradient, as in test_probe.py."""
    assert matrix_products(arsam_jax.k_sam(0.1, 1)) == 10
    assert matrix_products(arsam_jax.k_sam(0.1)) == 2 + 10
    assert matrix_products(arsam_jax.ausam(0.1, 128, 5)) == 10 + 10  # one or the other


def test_ausam_keeps_eight_bytes_an_example():
    state = arsam_jax.ausam(0.1, 50_000, 390).init({"w": jnp.ones((30, 40))}).probe
    assert state.total.nbytes + state.times.nbytes == 8 * 50_000
    assert state.ascent == arsam_jax.sam(0.1).init({"w": jnp.ones((30, 40))}).probe


# Devices: each picks from its own examples, all remember all


def on_four_devices(tx, state, w, batch, index):
    def step(w, state, batch, index):
        return tx.update(
            w,
            state,
            w,
            grad_fn=lambda w: w,
            example_loss_fn=example_loss_fn,
            batch=batch,
            example_index=index,
            axis_name="batch",
        )

    parts = jax.tree.map(lambda x: jnp.asarray(x).reshape(4, 4, *x.shape[1:]), (batch, index))
    mapped = jax.pmap(step, "batch", in_axes=(None, None, 0, 0), devices=jax.devices()[:4])
    results = mapped(w, state, *parts)
    first = jax.tree.map(lambda x: x[0], results)
    for device in range(1, 4):
        chex.assert_trees_all_equal(jax.tree.map(lambda x, d=device: x[d], results), first)
    return first


def sharded_problem():
    rng = np.random.default_rng(3)
    w, batch = rng.normal(size=SIZE), (rng.normal(size=(16, SIZE)), rng.normal(size=16))
    return w, batch, rng.permutation(EXAMPLES)[:16]


def test_k_sam_on_devices_takes_the_largest_losses_of_each():
    w, batch, index = sharded_problem()
    tx = arsam_jax.k_sam(RHO)
    params = least_squares.make_params(w)
    updates, _ = on_four_devices(tx, tx.init(params), params, batch, index)
    losses = example_losses(w, batch).reshape(4, 4)
    chosen = np.concatenate([4 * i + np.argsort(-row)[:2] for i, row in enumerate(losses)])
    expected, _ = perturbed_and_change(w, (batch[0][chosen], batch[1][chosen]), RHO)
    np.testing.assert_allclose(join(updates), expected, rtol=1e-9)


@pytest.mark.parametrize("epoch", ["first", "later"])
def test_ausam_on_devices_draws_of_each_and_keeps_one_memory(epoch):
    w, batch, index = sharded_problem()
    tx = arsam_jax.ausam(RHO, EXAMPLES, 5)
    params = least_squares.make_params(w)
    before = in_later_epoch(tx, step=0 if epoch == "first" else 50)
    updates, after = on_four_devices(tx, before, params, batch, index)
    total, count = np.asarray(after.probe.total), np.asarray(after.probe.times)
    seen = total[index] != 1
    counts = seen.reshape(4, 4).sum(1)
    np.testing.assert_array_equal(counts, 4 if epoch == "first" else 2)
    chosen = np.flatnonzero(seen)
    expected, change = perturbed_and_change(w, (batch[0][chosen], batch[1][chosen]), RHO)
    np.testing.assert_allclose(join(updates), expected, rtol=1e-9)
    start = epoch == "later"  # the ones of the start are replaced in the first epoch
    np.testing.assert_allclose(total[index[chosen]], start + change, rtol=1e-5)
    np.testing.assert_array_equal(count[index[chosen]], start + 1)
    others = np.setdiff1d(np.arange(EXAMPLES), index[chosen])
    assert (total[others] == 1).all()
    assert (count[others] == 1).all()


def test_devices_draw_apart():
    """With one memory for all and the same rows on each they would otherwise draw the same."""
    w, batch, _ = sharded_problem()
    batch = tuple(np.tile(x[:4], (4,) + (1,) * (x.ndim - 1)) for x in batch)
    tx = arsam_jax.ausam(RHO, EXAMPLES, 5, share=0.25)
    params = least_squares.make_params(w)
    _, after = on_four_devices(tx, in_later_epoch(tx), params, batch, np.arange(16))
    drawn = np.flatnonzero(np.asarray(after.probe.times) - 1)
    assert len(drawn) == 4
    assert len(set(drawn % 4)) > 1


# Wrong calls


def losses_of(params, batch):
    return batch[1] + 0 * params["scale"]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, r"(?s)needs example_index.*example_index=index"),
        (np.arange(3), r"^example_index must be integers of shape \(16,\).*got int64 of shape \(3"),
        (np.arange(16.0), r"^example_index must be integers .*got float64"),
        (np.ones(16, bool), r"^example_index must be integers .*got bool"),
        (np.arange(16) + 3, r"^example_index must be in \[0, 16\), .*got 3 to 18"),
        (np.arange(16) - 1, r"^example_index must be in \[0, 16\), .*got -1 to 14"),
        ([*range(15), 16], r"^example_index must be in \[0, 16\), .*got 0 to 16"),
    ],
    ids=["missing", "shape", "dtype", "bools", "beyond", "negative", "list"],
)
def test_ausam_explains_what_is_wrong_with_the_index(index, message):
    tx = arsam_jax.ausam(0.1, 16, 5)
    with pytest.raises(ValueError, match=message):
        update_with(tx, example_loss_fn=losses_of, batch=make_batch(0), example_index=index)


def test_parts_are_of_any_ascent():
    """USAM's ascent, which does not normalise, on the chosen examples."""
    tx = sharpness_aware(0.05, probe=selection.largest_losses(0.5, optax.identity()))

    def expected(step, w, batch, sampled):
        part = largest_losses(w, batch, 3)
        return gradient(w + 0.05 * gradient(w, part), part), True

    assert_follows(tx, expected)
