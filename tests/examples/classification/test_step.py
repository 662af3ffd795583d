"""The parts of the train step in closed form, on a linear model that needs no compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arsam_jax.trajectory import LogitMemory
from examples.classification import accumulation, step, trajectory
from examples.classification.step import Batch

pytestmark = pytest.mark.usefixtures("standard_promotion")

RNG = np.random.default_rng(0)
PARAMS = RNG.normal(size=(3, 4)).astype(np.float32)
BATCH = Batch(
    RNG.normal(size=(8, 3)).astype(np.float32),
    RNG.integers(0, 4, 8).astype(np.int32),
    np.arange(10, 18, dtype=np.int32),
)
KEY = jax.random.PRNGKey(0)


def linear(variables, images, *, is_training, mutable, rngs):
    assert is_training
    assert mutable == ["batch_stats"]
    statistics = {"mean": variables["batch_stats"]["mean"] + images.mean()}
    return images @ variables["params"], {"batch_stats": statistics}


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0, 0.3])
def test_losses_are_cross_entropies_with_smoothed_targets(smoothing):
    losses_fn = step.make_losses_fn(linear, label_smoothing=smoothing)
    losses, (logits, stats) = losses_fn(PARAMS, {"mean": 0.5}, BATCH, KEY)
    log_p = log_softmax(BATCH.images @ PARAMS)
    expected = -((1 - smoothing) * log_p[np.arange(8), BATCH.labels] + smoothing * log_p.mean(1))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(logits, BATCH.images @ PARAMS, rtol=1e-6)
    np.testing.assert_allclose(stats["mean"], 0.5 + BATCH.images.mean(), rtol=1e-6)


@pytest.mark.parametrize("method", ["sgd", "saf", "mesa"])
def test_a_batch_in_parts_has_the_loss_and_the_gradient_of_the_whole(method):
    """With the term of SAF or MESA, whose logits and averages are of each part's examples."""
    looks_back = trajectory.start(method, 1 - PARAMS, BATCH.images.shape, 20, 4)
    if isinstance(looks_back, LogitMemory):
        stored = jax.random.normal(KEY, looks_back.logits.shape, looks_back.logits.dtype)
        looks_back = LogitMemory(stored, jnp.ones_like(looks_back.is_kept))
    losses_fn = step.make_losses_fn(linear)
    loss_fn = trajectory.loss_with_term(losses_fn, looks_back, jnp.int32(8))
    whole = jax.value_and_grad(loss_fn, has_aux=True)
    parts = accumulation.in_parts(whole, 4)
    arguments = PARAMS, {"mean": jnp.zeros([])}, BATCH, KEY
    (loss, (logits, stats)), grads = parts(*arguments)
    (expected, (whole_logits, whole_stats)), whole_grads = whole(*arguments)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(grads, whole_grads, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(logits, whole_logits, rtol=1e-6)
    np.testing.assert_allclose(stats["mean"], 4 * whole_stats["mean"], rtol=1e-4)  # once a part
    plain = step.mean_of(losses_fn)(*arguments)[0]
    assert (expected > plain + 1e-3) == (method != "sgd")
