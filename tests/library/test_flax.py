"""Linen and NNX: BatchNorm moves once, dropout masks agree, one step works for any method."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training import train_state

import arsam_jax
from arsam_jax.flax import TrainState, nnx_microbatches, nnx_value_and_grad
from tests.versions import as_pure, needs_nnx

X = jnp.asarray(np.random.default_rng(0).normal(size=(16, 6)), jnp.float32)
Y = jnp.asarray(np.random.default_rng(1).normal(size=(16, 1)), jnp.float32)

pytestmark = pytest.mark.usefixtures("standard_promotion")


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        self.sow("intermediates", "mask", x == 0)
        return nn.Dense(1)(x)


class LinenState(TrainState):
    batch_stats: dict


@functools.cache
def linen_variables():
    return jax.jit(lambda: LinenNet().init(jax.random.key(0), X, train=False))()


def linen_state(tx):
    variables = linen_variables()
    return LinenState.create(
        apply_fn=LinenNet().apply,
        params=variables["params"],
        tx=tx,
        batch_stats=variables["batch_stats"],
    )


def linen_loss(params, state, key):
    output, changed = state.apply_fn(
        {"params": params, "batch_stats": state.batch_stats},
        X,
        train=True,
        rngs={"dropout": key},
        mutable=["batch_stats", "intermediates"],
    )
    return jnp.mean((output - Y) ** 2), changed


def linen_step(state, on_second=None, **extra_args):
    key = jax.random.fold_in(jax.random.key(1), state.step)
    grad = jax.grad(linen_loss, has_aux=True)

    def grad_fn(params):
        grads, changed = grad(params, state, key)
        if on_second is not None:
            jax.debug.callback(on_second, changed["intermediates"]["mask"][0])
        return grads

    grads, changed = grad(state.params, state, key)
    state = state.apply_gradients(
        grads=grads, grad_fn=grad_fn, batch_stats=changed["batch_stats"], **extra_args
    )
    return state, changed


def make_tx(link):
    return optax.chain(link, optax.sgd(0.05, momentum=0.9))


def test_linen_batch_stats_move_once_and_only_by_the_clean_pass():
    state = linen_state(make_tx(arsam_jax.sam(0.5)))
    jitted_loss = jax.jit(linen_loss)
    _, expected = jitted_loss(state.params, state, jax.random.fold_in(jax.random.key(1), 0))
    after, _ = jax.jit(linen_step)(state)
    chex.assert_trees_all_close(after.batch_stats, expected["batch_stats"], rtol=1e-6)
    perturbed_params = jax.tree.map(lambda w: w + 0.1, state.params)
    _, other = jitted_loss(perturbed_params, state, jax.random.key(1))
    with pytest.raises(AssertionError):  # the perturbed pass would have moved them elsewhere
        chex.assert_trees_all_close(after.batch_stats, other["batch_stats"], rtol=1e-6)


def test_linen_dropout_masks_are_the_same_in_both_passes():
    masks = []
    state = linen_state(make_tx(arsam_jax.sam(1e-6)))
    step = jax.jit(lambda s: linen_step(s, masks.append))
    for _ in range(2):
        masks.clear()
        state, changed = step(state)
        jax.effects_barrier()
        assert len(masks) == 1
        np.testing.assert_array_equal(masks[0], changed["intermediates"]["mask"][0])


def test_linen_state_forwards_extra_args_and_replaces_fields():
    tx = make_tx(arsam_jax.arsam(0.1, 0.5, warmup_steps=2))
    step = jax.jit(lambda s: linen_step(s, fisher_batch=None, extra_args={"unknown_extra": 3})[0])
    state = step(linen_state(tx))
    assert state.step == 1
    assert state.tx is tx
    assert arsam_jax.get_metrics(state.opt_state).num_sampled == 1
    with pytest.raises(ValueError, match="grad_fn"):
        state.apply_gradients(grads=state.params)


def test_linen_state_refuses_a_name_that_is_no_field():
    state = linen_state(make_tx(arsam_jax.sam(0.1)))
    with pytest.raises(
        TypeError, match=r"got batch_statz\. The fields of LinenState .*batch_stats"
    ):
        state.apply_gradients(grads=state.params, grad_fn=lambda w: w, batch_statz={})


@pytest.mark.parametrize("kwargs", [{}, {"grad_fn": lambda w: w}])
def test_flax_own_state_is_told_which_one_to_take(kwargs):
    params = {"w": jnp.ones(2)}
    state = train_state.TrainState.create(
        apply_fn=None, params=params, tx=make_tx(arsam_jax.sam(0.1))
    )
    with pytest.raises(ValueError, match=r"derive yours from arsam_jax\.flax\.TrainState"):
        state.apply_gradients(grads=params, **kwargs)


def test_linen_step_takes_a_plain_optimizer_unchanged():
    state = linen_state(optax.sgd(0.1))
    after, _ = jax.jit(linen_step)(state)
    grads, _ = jax.jit(jax.grad(linen_loss, has_aux=True))(
        state.params, state, jax.random.fold_in(jax.random.key(1), 0)
    )
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, state.params, grads)
    chex.assert_trees_all_close(after.params, expected, rtol=1e-6)


def test_linen_state_survives_serialization_bit_for_bit():
    tx = make_tx(arsam_jax.arsam(0.1, 0.5, segment_length=4))
    step = jax.jit(lambda state: linen_step(state)[0])
    initial = linen_state(tx)
    state = step(initial)
    for _ in range(4):
        state = step(state)
    restored = serialization.from_bytes(initial, serialization.to_bytes(state))
    for _ in range(5):
        state, restored = step(state), step(restored)
    chex.assert_trees_all_equal(state, restored)


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


def nnx_loss(model):
    return jnp.mean((model(X) - Y) ** 2)


def nnx_setup(link):
    model = NNXNet(nnx.Rngs(0))
    return model, nnx.Optimizer(model, make_tx(link), wrt=nnx.Param)


@nnx.jit
def nnx_step(model, optimizer):
    loss, grads, grad_fn = nnx_value_and_grad(nnx_loss, model)
    optimizer.update(model, grads, grad_fn=grad_fn)
    return loss


@needs_nnx
def test_nnx_batch_stats_and_dropout_counters_move_once():
    model, optimizer = nnx_setup(arsam_jax.sam(0.5))
    clean = nnx.clone(model)
    nnx_loss(clean)
    nnx_step(model, optimizer)
    for kind in (nnx.BatchStat, nnx.RngCount):
        ours, expected = (nnx.to_pure_dict(nnx.state(m, kind)) for m in (model, clean))
        chex.assert_trees_all_close(ours, expected, rtol=1e-6)


@needs_nnx
def test_nnx_second_pass_draws_the_same_dropout_mask():
    model, _ = nnx_setup(arsam_jax.sam(0.1))
    params = as_pure(nnx.state(model, nnx.Param))
    _, grads, grad_fn = nnx_value_and_grad(nnx_loss, model)
    chex.assert_trees_all_close(grad_fn(params), as_pure(grads), rtol=1e-5, atol=1e-7)
    _, _, later = nnx_value_and_grad(nnx_loss, model)  # the counters have moved: another mask
    assert not np.allclose(later(params)["last"]["kernel"], grads["last"]["kernel"][...], rtol=1e-3)


@needs_nnx
def test_nnx_sam_equals_a_hand_written_step():
    model, optimizer = nnx_setup(arsam_jax.sam(0.3))
    reference = nnx.clone(model)
    graphdef, params, rest = nnx.split(reference, nnx.Param, ...)

    def gradient(params):
        return jax.grad(lambda p: nnx_loss(nnx.merge(graphdef, p, rest, copy=True)))(params)

    g = gradient(params)
    norm = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(g)))
    perturbed = gradient(jax.tree.map(lambda w, x: w + 0.3 * x / norm, params, g))
    expected = jax.tree.map(lambda w, x: w - 0.05 * x, params, perturbed)
    nnx_step(model, optimizer)
    chex.assert_trees_all_close(
        jax.tree.leaves(nnx.state(model, nnx.Param)),
        jax.tree.leaves(expected),
        rtol=1e-5,
        atol=1e-7,
    )


@needs_nnx
def test_a_grad_fn_of_the_whole_model_is_explained():
    model, _ = nnx_setup(optax.identity())
    params, tx = as_pure(nnx.state(model, nnx.Param)), arsam_jax.sam(0.1)
    with pytest.raises(TypeError) as caught:
        tx.update(params, tx.init(params), params, grad_fn=jax.grad(lambda model: model(X).sum()))
    assert any("nnx.merge" in note and "eqx.combine" in note for note in caught.value.__notes__)


@needs_nnx
def test_nnx_arsam_trains_and_its_metrics_are_found():
    model, optimizer = nnx_setup(arsam_jax.arsam(0.1, 0.5, segment_length=5, initial_samples=2))
    losses = [nnx_step(model, optimizer) for _ in range(40)]
    assert losses[-1] < losses[0]
    metrics = arsam_jax.get_metrics(as_pure(optimizer.opt_state))
    assert 0 < metrics.num_sampled < 40


def with_aux(model, x, y):
    output = model(x)
    return jnp.mean((output - y) ** 2), output


@needs_nnx
def test_nnx_auxiliary_output_and_arguments():
    model, _ = nnx_setup(arsam_jax.sam(0.1))
    other = nnx.clone(model)
    params = as_pure(nnx.state(model, nnx.Param))
    (loss, output), grads, grad_fn = nnx_value_and_grad(with_aux, model, X, Y, has_aux=True)
    expected_loss, expected_grads, expected_grad_fn = nnx_value_and_grad(nnx_loss, other)
    assert output.shape == Y.shape
    chex.assert_trees_all_equal(
        (loss, as_pure(grads), grad_fn(params)),
        (expected_loss, as_pure(expected_grads), expected_grad_fn(params)),
    )


@nnx.jit
def loop_over_parts(model, params):
    """Loss and gradients, accumulated by hand: NNX's own gradient of each part after the other."""
    nnx.update(model, params)
    values = [nnx.value_and_grad(with_aux, has_aux=True)(model, X[k::4], Y[k::4]) for k in range(4)]
    grads = [as_pure(grads) for _, grads in values]
    return sum(loss for (loss, _), _ in values) / 4, jax.tree.map(lambda *g: sum(g) / 4, *grads)


@needs_nnx
def test_nnx_accumulates_over_microbatches_with_state_that_goes_on():
    model, _ = nnx_setup(arsam_jax.sam(0.1))
    params = as_pure(nnx.state(model, nnx.Param))
    perturbed = jax.tree.map(lambda w: w + 0.1, params)
    by_hand, by_hand_perturbed = nnx.clone(model), nnx.clone(model)

    @nnx.jit
    def gradients(model, x, y, perturbed):
        (loss, aux), grads, grad_fn = nnx_value_and_grad(
            with_aux, model, x, y, has_aux=True, num_microbatches=4
        )
        return loss, aux, as_pure(grads), grad_fn(perturbed)

    loss, aux, *ours = gradients(model, X, Y, perturbed)
    assert aux.shape == (4, 4, 1)
    expected_loss, expected = loop_over_parts(by_hand, params)
    _, expected_perturbed = loop_over_parts(by_hand_perturbed, perturbed)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    chex.assert_trees_all_close(ours, [expected, expected_perturbed], rtol=1e-4, atol=1e-6)
    for kind in (nnx.BatchStat, nnx.RngCount):  # of the clean pass alone, four times
        moved, expected = (nnx.to_pure_dict(nnx.state(m, kind)) for m in (model, by_hand))
        chex.assert_trees_all_close(moved, expected, rtol=1e-5)
    rngs = model.dropout.rngs
    assert rngs is not None
    assert rngs.count[...] == 4


@needs_nnx
def test_nnx_trains_with_microbatches():
    model, optimizer = nnx_setup(arsam_jax.arsam(0.1, 0.5, segment_length=5, initial_samples=2))

    @nnx.jit
    def step(model, optimizer):
        (loss, _), grads, grad_fn = nnx_value_and_grad(
            with_aux, model, X, Y, has_aux=True, num_microbatches=2
        )
        optimizer.update(model, grads, grad_fn=grad_fn)
        return loss

    losses = [step(model, optimizer) for _ in range(30)]
    assert losses[-1] < losses[0]
    assert 0 < arsam_jax.metrics_dict(optimizer.opt_state)["num_sampled"] < 30


@needs_nnx
def test_nnx_microbatches_have_to_divide_the_batch():
    model, _ = nnx_setup(arsam_jax.sam(0.1))
    with pytest.raises(ValueError, match=r"num_microbatches must divide .* got 3 and .* \[16\]"):
        nnx_value_and_grad(with_aux, model, X, Y, has_aux=True, num_microbatches=3)
    with pytest.raises(ValueError, match=r"^num_microbatches must be an integer >= 1, got 0"):
        nnx_value_and_grad(nnx_loss, model, num_microbatches=0)


@needs_nnx
def test_nnx_trains_what_wrt_names_and_nothing_else():
    model, _ = nnx_setup(optax.identity())
    head = nnx.All(nnx.Param, nnx.PathContains("last"))
    link = arsam_jax.arsam(0.1, 0.5, segment_length=5, initial_samples=2)
    optimizer = nnx.Optimizer(model, optax.chain(link, optax.adamw(0.01)), wrt=head)
    before = nnx.clone(model)

    @nnx.jit
    def step(model, optimizer):
        _, grads, grad_fn = nnx_value_and_grad(nnx_loss, model, wrt=head)
        optimizer.update(model, grads, grad_fn=grad_fn)

    for _ in range(12):
        step(model, optimizer)
    assert 0 < arsam_jax.metrics_dict(optimizer.opt_state)["num_sampled"] < 12
    for name in ("first", "norm"):
        frozen, expected = (
            nnx.to_pure_dict(nnx.state(getattr(m, name), nnx.Param)) for m in (model, before)
        )
        chex.assert_trees_all_equal(frozen, expected)
    assert not np.array_equal(model.last.kernel[...], before.last.kernel[...])


class WithObjects(nnx.Module):
    """Dropout by the caller's ``Rngs``, and the output of a second model with BatchNorm added."""

    def __init__(self, rngs):
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)
        self.last = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x, rngs, teacher):
        return self.last(self.dropout(self.first(x), rngs=rngs)) + teacher(x)


class Teacher(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(6, 1, rngs=rngs)
        self.norm = nnx.BatchNorm(1, momentum=0.9, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.first(x))


def loss_with_objects(model, batch, others):
    x, y = batch
    error = jnp.square(model(x, others["rngs"], others["teacher"]) - y)
    others["metric"].update(values=error)
    return error.mean()


def objects():
    return {
        "rngs": nnx.Rngs(dropout=3),
        "metric": nnx.metrics.Average(),
        "teacher": Teacher(nnx.Rngs(5)),
    }


def pure_state(tree):
    """All of it but the keys, which NumPy cannot read."""
    return as_pure(nnx.state(tree, nnx.Not(nnx.RngKey)))


@needs_nnx
@pytest.mark.parametrize("num_microbatches", [1, 4])
def test_nnx_objects_among_the_arguments_move_as_in_plain_nnx(num_microbatches):
    """Over two steps and for each part once, whatever ``grad_fn`` evaluates in between."""
    model, ours, plain = WithObjects(nnx.Rngs(0)), objects(), objects()

    @nnx.jit
    def step(model, others):
        loss, grads, grad_fn = nnx_value_and_grad(
            loss_with_objects, model, (X, Y), others, num_microbatches=num_microbatches
        )
        again = as_pure(grad_fn(nnx.state(model, nnx.Param)))
        grad_fn(jax.tree.map(lambda w: w + 1, as_pure(nnx.state(model, nnx.Param))))
        return loss, as_pure(grads), again

    @nnx.jit
    def plain_step(model, others):
        parts = [(X[k::num_microbatches], Y[k::num_microbatches]) for k in range(num_microbatches)]
        values = [nnx.value_and_grad(loss_with_objects)(model, part, others) for part in parts]
        return sum(loss for loss, _ in values) / num_microbatches

    losses = []
    for _ in range(2):
        loss, grads, again = step(model, ours)
        np.testing.assert_allclose(loss, plain_step(model, plain), rtol=1e-5)
        chex.assert_trees_all_close(again, grads, rtol=1e-4, atol=1e-6)
        losses.append(float(loss))
    assert losses[0] != losses[1]
    chex.assert_trees_all_close(pure_state(ours), pure_state(plain), rtol=1e-5)
    assert ours["rngs"].dropout.count[...] == 2 * num_microbatches


@needs_nnx
def test_nnx_microbatches_move_objects_of_the_batch_once():
    model, others = WithObjects(nnx.Rngs(0)), objects()
    optimizer = nnx.Optimizer(model, make_tx(arsam_jax.m_sam(0.1, 2)), wrt=nnx.Param)

    def losses(model, batch):
        x, y, others = batch
        return jnp.square(model(x, others["rngs"], others["teacher"]) - y)[:, 0]

    @nnx.jit
    def step(model, optimizer, others):
        loss, grads, extra_args = nnx_microbatches(losses, model, (X, Y, others))
        optimizer.update(model, grads, **extra_args)
        return loss

    before = pure_state(others["teacher"])
    first, second = (float(step(model, optimizer, others)) for _ in range(2))
    assert first != second
    assert others["rngs"].dropout.count[...] == 2
    moved = pure_state(others["teacher"])
    chex.assert_trees_all_equal(moved["first"], before["first"])
    assert not np.array_equal(moved["norm"]["mean"], before["norm"]["mean"])


@needs_nnx
@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_nnx_filter_given_to_the_optimizer_alone_is_named(num_microbatches):
    model, _ = nnx_setup(optax.identity())
    head = nnx.All(nnx.Param, nnx.PathContains("last"))
    optimizer = nnx.Optimizer(model, make_tx(arsam_jax.sam(0.1)), wrt=head)
    _, grads, grad_fn = nnx_value_and_grad(
        with_aux, model, X, Y, has_aux=True, num_microbatches=num_microbatches
    )
    message = r"that wrt selects: first\.bias, .* Got: last\.bias, last\.kernel\. .* filter wrt"
    with pytest.raises(ValueError, match=message):
        optimizer.update(model, grads, grad_fn=grad_fn)


def example_loss(model, batch):
    x, y = batch
    return jnp.square(model(x) - y)[:, 0]


@needs_nnx
def test_nnx_microbatches_are_each_perturbed_by_their_own_gradient():
    """m-SAM by hand: each half from the same state, with the same dropout mask."""
    model, optimizer = nnx_setup(arsam_jax.m_sam(0.3, 2))
    halves = [(X[k::2], Y[k::2]) for k in range(2)]
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params, rest = as_pure(params), as_pure(rest)

    def gradient(params, half):
        def loss(params):
            return example_loss(nnx.merge(graphdef, params, rest, copy=True), half).mean()

        return jax.grad(loss)(params)

    def perturbed(half):
        g = gradient(params, half)
        norm = optax.tree.norm(g)
        return gradient(jax.tree.map(lambda w, x: w + 0.3 * x / norm, params, g), half)

    moved = [nnx.clone(model) for _ in halves]
    losses = [example_loss(copy, half).mean() for copy, half in zip(moved, halves, strict=True)]

    @nnx.jit
    def step(model, optimizer):
        loss, grads, extra_args = nnx_microbatches(example_loss, model, (X, Y))
        optimizer.update(model, grads, **extra_args)
        return loss, as_pure(grads), extra_args["microbatch_grads"]

    loss, grads, of_each = step(model, optimizer)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    expected = [gradient(params, half) for half in halves]
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-4, atol=1e-6)
    close(of_each, jax.tree.map(lambda *g: jnp.stack(g), *expected))
    close(grads, jax.tree.map(lambda a, b: (a + b) / 2, *expected))
    change = jax.tree.map(lambda a, b: -0.05 * (a + b) / 2, *map(perturbed, halves))
    after = as_pure(nnx.state(model, nnx.Param))
    close(jax.tree.map(lambda a, b: a - b, after, params), change)
    (means, counts), *others = (
        [nnx.to_pure_dict(nnx.state(m, kind)) for kind in (nnx.BatchStat, nnx.RngCount)]
        for m in (model, *moved)
    )
    assert not np.allclose(others[0][0]["norm"]["mean"], others[1][0]["norm"]["mean"])
    close(means, jax.tree.map(lambda a, b: (a + b) / 2, others[0][0], others[1][0]))
    chex.assert_trees_all_equal(counts, others[0][1])


@needs_nnx
def test_nnx_trains_with_samples_of_m_sam():
    model, optimizer = nnx_setup(arsam_jax.budgeted_sam(0.1, share=0.25, num_microbatches=2))

    @nnx.jit
    def step(model, optimizer):
        loss, grads, extra_args = nnx_microbatches(example_loss, model, (X, Y))
        optimizer.update(model, grads, **extra_args)
        return loss

    losses = [step(model, optimizer) for _ in range(24)]
    assert losses[-1] < losses[0]
    assert arsam_jax.metrics_dict(optimizer.opt_state)["num_sampled"] == 6
    with pytest.raises(ValueError, match="must divide the batch size 16, got 3"):
        nnx_microbatches(example_loss, model, (X, Y), 3)
