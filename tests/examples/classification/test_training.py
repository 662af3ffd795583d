"""The train step of an image classifier, and whole runs on digits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import arsam_jax
from arsam_jax.trajectory import LogitMemory
from examples.classification import datasets, models, step
from examples.classification.__main__ import Classification, main
from examples.classification.options import Options
from examples.classification.step import Batch
from examples.common.comparison import Trainer
from examples.common.errors import StoppedError

pytestmark = pytest.mark.usefixtures("standard_promotion")

TINY = Options(
    width=2, dropout=0.2, batch_size=100, epochs=2, segment_length=5, evaluate_every=1, name="tiny"
)
RNG = np.random.default_rng(0)
PARAMS = {"w": RNG.normal(size=(3, 4)).astype(np.float32)}
BATCH = Batch(
    RNG.normal(size=(8, 3)).astype(np.float32),
    RNG.integers(0, 4, 8).astype(np.int32),
    np.arange(10, 18, dtype=np.int32),
)
KEY = jax.random.PRNGKey(0)


def linear(variables, images, *, is_training, mutable, rngs):
    """A model that needs no compilation."""
    assert is_training
    assert mutable == ["batch_stats"]
    statistics = {"mean": variables["batch_stats"]["mean"] + images.mean()}
    return images @ variables["params"]["w"], {"batch_stats": statistics}


LOSSES_FN = step.make_losses_fn(linear)
jitted_step = jax.jit(
    step.train_step, static_argnames=("losses_fn", "num_parts", "num_microbatches")
)


def test_losses_are_cross_entropies():
    losses, (logits, stats) = LOSSES_FN(PARAMS, {"mean": 0.5}, BATCH, KEY)
    expected_logits = BATCH.images @ PARAMS["w"]
    log_p = expected_logits - np.log(np.exp(expected_logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(losses, -log_p[np.arange(8), BATCH.labels], rtol=1e-5)
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-6)
    np.testing.assert_allclose(stats["mean"], 0.5 + BATCH.images.mean(), rtol=1e-6)


def test_a_batch_in_parts_has_the_loss_and_gradient_of_the_whole_and_of_each_part():
    stats = {"mean": jnp.zeros([])}

    def losses_of(params, batch, key):
        return LOSSES_FN(params, stats, batch, key)

    def mean_loss(params, batch=BATCH):
        return losses_of(params, batch, KEY)[0].mean()

    take = jax.jit(step.in_parts(losses_of, 2))
    (loss, (logits, new_stats)), grads, of_each = take(PARAMS, BATCH, KEY)
    expected, whole = jax.value_and_grad(mean_loss)(PARAMS)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(grads["w"], whole["w"], rtol=1e-4, atol=1e-6)
    for part in range(2):
        half = jax.grad(mean_loss)(PARAMS, Batch(*(x[part::2] for x in BATCH)))
        np.testing.assert_allclose(of_each["w"][part], half["w"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(logits, BATCH.images @ PARAMS["w"], rtol=1e-5)
    np.testing.assert_allclose(new_stats["mean"], BATCH.images.mean(), rtol=1e-4)


def linear_state(method, tx, trajectory=None):
    return step.TrainState.create(
        apply_fn=linear,
        params=jax.tree.map(jnp.asarray, PARAMS),
        tx=tx,
        batch_stats={"mean": jnp.zeros([])},
        key=KEY,
        method=method,
        trajectory=trajectory,
    )


def train_step(state, previous=BATCH, **kwargs):
    kwargs = {"epoch": 8} | kwargs
    return jitted_step(state, BATCH, previous, (KEY, KEY), LOSSES_FN, **kwargs)


@pytest.mark.parametrize("method", ["saf", "mesa"])
def test_saf_and_mesa_add_their_term_and_keep_a_trajectory(method):
    trajectory = step.start_trajectory(method, {"w": jnp.asarray(1 - PARAMS["w"])}, 20, 4)
    if isinstance(trajectory, LogitMemory):
        stored = jax.random.normal(KEY, trajectory.logits.shape, trajectory.logits.dtype)
        trajectory = LogitMemory(stored, jnp.ones_like(trajectory.is_kept))
    state = linear_state(method, optax.sgd(0.1), trajectory)
    _, early = train_step(state, epoch=0)  # before the term starts
    new, late = train_step(state)
    assert late > early + 1e-3
    if method == "mesa":
        assert (new.trajectory["w"] != trajectory["w"]).all()
    else:
        changed = np.any(np.asarray(new.trajectory.logits != trajectory.logits), axis=(0, 2))
        np.testing.assert_array_equal(np.flatnonzero(changed), BATCH.index)
    in_parts, _ = train_step(state, num_parts=4)
    np.testing.assert_allclose(in_parts.params["w"], new.params["w"], rtol=1e-4, atol=1e-6)


def test_a_method_gets_the_batches_that_it_asks_for():
    def params_after(method, tx, **kwargs):
        state = linear_state(method, optax.chain(tx, optax.sgd(0.1)))
        return train_step(state, **kwargs)[0].params["w"]

    other = BATCH._replace(labels=(BATCH.labels + 1) % 4)
    sampa = arsam_jax.sampa(0.1, 0.1)
    assert (params_after("sampa", sampa) != params_after("sampa", sampa, previous=other)).any()
    budgeted = arsam_jax.budgeted_sam(0.1, share=1.0, num_microbatches=2)
    given = params_after("budgeted_sam", budgeted, num_microbatches=2)
    m_sam = params_after("m_sam", arsam_jax.m_sam(0.1, 2))
    np.testing.assert_allclose(given, m_sam, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def digits():
    return datasets.load(Options())


def test_bfloat16_computes_and_float32_keeps(digits):
    options = dataclasses.replace(TINY, dtype="bfloat16")
    trainer = Trainer(options, Classification(options, digits))
    state = jax.eval_shape(lambda: trainer.new_state("sam", 0))
    batch = trainer.task.batch(np.arange(options.batch_size), 0, 0)
    trace = jax.make_jaxpr(trainer.task.train_step, return_shape=True)
    jaxpr, (new_state, loss) = trace(state, batch, batch)
    assert loss.dtype == jnp.float32
    for tree in (new_state.params, new_state.batch_stats, new_state.opt_state):
        assert all(leaf.dtype != jnp.bfloat16 for leaf in jax.tree.leaves(tree))
    products = [
        equation.outvars[0].aval.dtype
        for equation in jaxpr.eqns
        if equation.primitive.name in ("conv_general_dilated", "dot_general")
    ]
    assert products.count(jnp.bfloat16) > len(products) / 2


@pytest.mark.parametrize(("size", "stages"), [(8, 2), (28, 4), (64, 5)])
def test_the_cnn_is_sized_by_the_image(size, stages):
    model = models.make_model("cnn", size, 10, width=4)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), np.zeros((1, size, size, 3)), is_training=False)
    )
    assert len(variables["params"]) == 4 * stages + 1  # two convolutions and BatchNorms per stage


def test_noisy_labels_and_augmentation_are_those_of_the_seed_and_step(digits):
    options = dataclasses.replace(TINY, label_noise=0.4, augment=("crop",))
    task, index = Classification(options, digits), np.arange(100)
    labels = [task.batch(index, 0, seed).labels for seed in (0, 0, 1)]
    np.testing.assert_array_equal(labels[0], labels[1])
    assert 20 < (labels[0] != labels[2]).sum() < 80
    state, batch = task.new_state(arsam_jax.sam(0.1), 0), task.batch(index, 0, 0)
    keys, batches = zip(*(task._augmented(state, batch, at) for at in (3, 3, 4)), strict=True)
    np.testing.assert_array_equal(batches[0].images, batches[1].images)
    assert (batches[0].images != batches[2].images).any()
    assert (keys[0] != keys[2]).any()


def test_a_resumed_run_ends_with_the_same_bits_on_other_seeds_too(digits, tmp_path):
    """One compiled step serves both seeds."""
    trainer = Trainer(TINY, Classification(TINY, digits))
    contents = []
    for seed in (7, 8):
        folders = [tmp_path / name / str(seed) for name in ("whole", "parts")]
        calls = iter(range(1, 100))
        with pytest.raises(StoppedError, match=f"arsam, seed {seed}, at step 13"):
            trainer.train("arsam", seed, folders[1], should_stop=lambda c=calls: next(c) == 13)
        results = [trainer.train("arsam", seed, folder) for folder in folders]
        assert results[0]["measures"] == results[1]["measures"]
        files = [(f / "checkpoint").read_bytes().partition(b'"arrays"')[2] for f in folders]
        assert files[0] == files[1]
        contents.append(files[0])
    assert contents[0] != contents[1]
    assert len(trainer._steps) == 1


@pytest.mark.long
def test_a_smoke_run_of_a_row_of_the_paper(tmp_path, capsys):
    """CIFAR-100, without the data: the network of the row is replaced by a small one."""
    arguments = ["--row", "table3/cifar100_wrn28_10_arsam", "--smoke", "--output", str(tmp_path)]
    assert main([*arguments, "--model", "cnn", "--width", "2"]) == 0
    printed = capsys.readouterr().out
    assert "cifar100: 16 training and 16 test images of 32×32×3; cnn with" in printed
    assert "Training 1 runs of 4 steps" in printed
    assert not list(tmp_path.iterdir())
