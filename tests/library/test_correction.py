"""Corrections: what is reused with any probe, and that rounding is not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import arsam_jax
from arsam_jax import correction, probe, sampling, selection, sharpness_aware, sparse
from arsam_jax.ascent import normalize, normalize_by_weights
from tests import least_squares
from tests.least_squares import SIZE, assert_follows, gradient, join

pytestmark = pytest.mark.usefixtures("x64")

RHO = 0.3


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
    """A reuse step returns g + a PSF with the PSF of the last sampled step, whatever the probe."""
    policy = sampling.autoregressive(0.8, segment_length=6, initial_samples=2, seed=3)
    tx = sharpness_aware(
        RHO,
        probe=chosen_probe,
        sampling=policy,
        correction=correction.reuse_psf(2, strength=strength),
    )
    alone = sharpness_aware(RHO, probe=chosen_probe)
    alone_state = alone.init(least_squares.make_params(np.zeros(SIZE)))
    psf, age, kinds = np.zeros(SIZE), None, []

    def expected(step, w, batch, sampled):
        nonlocal psf, age, alone_state
        g = gradient(w, batch)
        age = None if age is None else age + 1
        if sampled:
            g_alone, alone_state = alone.update(
                least_squares.make_params(g),
                alone_state._replace(step=jnp.int32(step)),
                least_squares.make_params(w),
                grad_fn=least_squares.grad_fn_of(batch),
                example_loss_fn=least_squares.example_loss_fn,
                batch=jax.tree.map(jnp.asarray, batch),
            )
            psf, age = join(g_alone) - g, 0
        kinds.append("sampled" if sampled else "reuse" if age in (1, 2) else "plain")
        return (g if kinds[-1] == "plain" else g + strength * psf), sampled

    state = assert_follows(tx, expected)
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
