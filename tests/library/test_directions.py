"""Perturbations along other directions than the gradient, and stabilized SAM."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import arsam_jax
from arsam_jax import ascent, correction, probe, sampling, sharpness_aware
from tests.least_squares import assert_follows, gradient, split
from tests.problem import loss_fn, make_batch, make_params, train
from tests.reference import always, norm, perturbed, unit

RHO = 0.3
BASE = optax.sgd(0.05, momentum=0.9)


def preconditioned_sam(rho, decay, eps):
    """Singh et al., arXiv 2502.02407: along g / (√v̂ + ϵ) with Adam's v̂, of length ρ."""
    v, count = 0.0, 0

    def update(step, w, batch, sampled):
        nonlocal v, count
        g = gradient(w, batch)
        v, count = decay * v + (1 - decay) * g**2, count + 1
        direction = g / (np.sqrt(v / (1 - decay**count)) + eps)
        return gradient(w + rho * unit(direction), batch), True

    return update


def stabilized_sam(rho):
    """Tan et al., arXiv 2401.07250: g_A with the norm of g."""
    return always(
        lambda w, batch: (
            norm(gradient(w, batch)) / norm(perturbed(w, batch, rho)) * perturbed(w, batch, rho)
        )
    )


def directed_sam(rho):
    """AsyncSAM, arXiv 2503.11147, and FedLESAM: along d, here the parameters."""
    return always(lambda w, batch: gradient(w + rho * unit(w), batch))


def moving_average(rho, decay):
    """The mean of EFMLoRA's code (arXiv 2508.00522) for plain parameters; decay 0 is AsyncSAM."""
    e = np.zeros(())

    def update(step, w, batch, sampled):
        nonlocal e
        g = gradient(w + rho * e, batch)
        e = decay * e + (1 - decay) * unit(g)
        return g, True

    return update


def periodic_sam(rho, k):
    """Every k-th step adds k times the PSF to g, as the periodic SAM of init2winit does."""

    def update(step, w, batch, sampled):
        g = gradient(w, batch)
        is_due = step % k == 0
        return (g + k * (perturbed(w, batch, rho) - g) if is_due else g), is_due

    return update


def along_average(decay):
    return sharpness_aware(RHO, probe=probe.moving_average(decay))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("tx", "reference"),
    [
        (arsam_jax.preconditioned_sam(RHO), preconditioned_sam(RHO, 0.999, 1e-8)),
        (
            arsam_jax.preconditioned_sam(RHO, decay=0.8, eps=0.1),
            preconditioned_sam(RHO, 0.8, 0.1),
        ),
        (arsam_jax.stabilized_sam(RHO), stabilized_sam(RHO)),
        (arsam_jax.directed_sam(RHO), directed_sam(RHO)),
        (along_average(0.0), moving_average(RHO, 0.0)),
        (along_average(0.7), moving_average(RHO, 0.7)),
        (
            sharpness_aware(
                RHO, sampling=sampling.every_k(3), correction=correction.interpolate(3)
            ),
            periodic_sam(RHO, 3),
        ),
    ],
    ids=[
        *("preconditioned", "preconditioned_eps", "stabilized", "directed"),
        *("async", "average", "periodic"),
    ],
)
def test_a_method_follows_its_paper(tx, reference):
    assert_follows(tx, reference)


@pytest.mark.usefixtures("x64")
def test_async_sam_with_a_gradient_from_elsewhere():
    """The direction is the clean gradient of the step before, on its own mini-batch."""
    batches = [np.random.default_rng(i).normal(size=(2, 4, 8)) for i in range(6)]
    examples = [(x[0], x[1, :, 0]) for x in batches]
    tx, w = arsam_jax.directed_sam(RHO), np.ones(8)
    state, before, v = tx.init(split(w)), np.zeros(8), np.ones(8)
    for batch in examples:

        def grad_fn(params, batch=batch):
            flat = np.concatenate([np.ravel(params["a"]), np.ravel(params["b"])])
            return split(jnp.asarray(gradient(flat, batch)))

        updates, state = tx.update(
            grad_fn(split(w)), state, split(w), grad_fn=grad_fn, direction=split(before)
        )
        g_A = gradient(v + RHO * unit(before), batch)
        before = gradient(v, batch)
        w = w - 0.1 * np.concatenate([np.ravel(updates["a"]), np.ravel(updates["b"])])
        v = v - 0.1 * g_A
    np.testing.assert_allclose(w, v, rtol=1e-9)


def emitted(tx, direction=None):
    params, batch = make_params(), make_batch(0)
    grad_fn = jax.grad(lambda p: loss_fn(p, batch))
    extra = {} if direction is None else {"direction": direction(grad_fn(params))}
    updates, state = jax.jit(
        lambda state: tx.update(grad_fn(params), state, params, grad_fn=grad_fn, **extra)
    )(tx.init(params))
    return updates, state, grad_fn(params)


@pytest.mark.parametrize(
    ("tx", "direction"),
    [
        (arsam_jax.directed_sam(0.1), lambda g: g),
        (arsam_jax.directed_sam(0.1), lambda g: jax.tree.map(lambda x: 1e3 * x, g)),
        (arsam_jax.preconditioned_sam(0.1, eps=1e12), None),
        (sharpness_aware(0.1, correction=correction.interpolate(1)), None),
    ],
    ids=["directed", "directed_scaled", "preconditioned", "periodic_1"],
)
def test_settings_that_are_sam(tx, direction):
    ours, _, grads = emitted(tx, direction)
    sam, _, _ = emitted(arsam_jax.sam(0.1))
    chex.assert_trees_all_close(ours, sam, rtol=1e-4, atol=1e-6)
    assert not np.allclose(sam["kernel"], grads["kernel"], rtol=1e-2)


def test_stabilized_sam_is_sam_where_all_gradients_are_as_long():
    tx, params = arsam_jax.stabilized_sam(0.1), jnp.array([3.0, 4.0])
    unit_grad = jax.grad(lambda w: jnp.sqrt(jnp.square(w - 1).sum()))
    ours, _ = tx.update(unit_grad(params), tx.init(params), params, grad_fn=unit_grad)
    np.testing.assert_allclose(ours, unit_grad(params + 0.1 * unit_grad(params)), rtol=1e-6)


def test_directions_of_zero_are_the_base_optimizer():
    for tx in (arsam_jax.directed_sam(0.1), along_average(0.5)):  # whose average starts at 0
        ours, _, grads = emitted(tx, lambda g: jax.tree.map(jnp.zeros_like, g))
        chex.assert_trees_all_close(ours, grads, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        arsam_jax.directed_sam,
        arsam_jax.preconditioned_sam,
        arsam_jax.stabilized_sam,
        lambda rho: sharpness_aware(rho, probe=probe.moving_average()),
    ],
)
def test_a_radius_of_zero_is_the_base_optimizer_bit_for_bit(make):
    ours, _ = train(optax.chain(make(0.0), BASE), 5)
    base, _ = train(optax.with_extra_args_support(BASE), 5)
    chex.assert_trees_all_equal(ours, base)


def test_a_given_direction_and_an_average_cost_one_gradient():
    """Matrix products in the compiled step: 5 are those of the base optimizer, and SAM has 10."""
    w = {"in": jnp.ones((16, 16)), "out": jnp.ones((16, 16))}

    def grad_fn(params, x=jnp.ones((8, 16))):  # noqa: B008
        return jax.grad(lambda p: jnp.tanh(jnp.tanh(x @ p["in"]) @ p["out"]).sum())(params)

    def products(tx):
        def step(params, state, direction):
            update = optax.with_extra_args_support(tx).update
            return update(grad_fn(params), state, params, grad_fn=grad_fn, direction=direction)

        lowered = jax.jit(step).lower(w, tx.init(w), w)
        return str(lowered.compile().as_text()).count(" dot(")

    assert products(optax.identity()) == 5
    assert products(arsam_jax.sam(0.1)) == 10
    assert products(arsam_jax.directed_sam(0.1)) == 5
    assert products(along_average(0.1)) == 5


def test_the_average_keeps_one_buffer_and_refuses_what_is_not_finite():
    tx, params = along_average(0.1), {"w": jnp.ones(4, jnp.bfloat16)}
    state = tx.init(params)
    assert [x.dtype for x in jax.tree.leaves(state.probe)] == [jnp.float32]
    _, state = tx.update(params, state, params, grad_fn=lambda p: p)
    _, after = tx.update(params, state, params, grad_fn=lambda p: {"w": p["w"] * jnp.nan})
    chex.assert_trees_all_equal(after.probe, state.probe)
    assert jnp.abs(state.probe.direction["w"]).max() > 0


@pytest.mark.usefixtures("standard_promotion")  # which Adam needs
def test_the_second_moment_is_that_of_adam():
    grads = [jnp.asarray(np.random.default_rng(i).normal(size=5), jnp.float32) for i in range(4)]
    ours, adam = ascent.precondition(0.9, 1e-6), optax.scale_by_adam(b1=0.0, b2=0.9, eps=1e-6)
    state, adam_state = ours.init(grads[0]), adam.init(grads[0])
    for g in grads:
        found, state = ours.update(g, state)
        expected, adam_state = adam.update(g, adam_state)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_complex_gradients_are_divided_by_their_modulus():
    tx, g = ascent.precondition(0.0), jnp.asarray([3 + 4j, -2j, 0], jnp.complex64)
    found, state = tx.update(g, tx.init(g))
    np.testing.assert_allclose(found, [0.6 + 0.8j, -1j, 0], rtol=1e-5)
    assert state.second_moment.dtype == jnp.float32


def test_a_direction_has_to_be_given_and_shaped_like_the_parameters():
    tx, params = arsam_jax.directed_sam(0.1), {"w": jnp.ones(3)}
    args = params, tx.init(params), params
    with pytest.raises(ValueError, match=r"(?s)needs direction.*direction=direction\)"):
        tx.update(*args, grad_fn=lambda p: p)
    with pytest.raises(ValueError, match=r"^direction must be shaped like params, got \(2,\) in"):
        tx.update(*args, grad_fn=lambda p: p, direction={"w": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"needs direction"):
        arsam_jax.check_wiring(tx, params, params, grad_fn=lambda p: p)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: arsam_jax.preconditioned_sam(0.1, decay=1), "decay must be .*, got 1"),
        (lambda: arsam_jax.preconditioned_sam(0.1, eps=0), "eps must be .*, got 0"),
        (lambda: probe.moving_average(-0.1), "decay must be .*, got -0.1"),
        (lambda: probe.moving_average(ascent=ascent.normalize), "ascent must be .*called"),
        (lambda: probe.along_direction(3), "ascent must be .*got 3"),  # pyright: ignore
    ],
)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        make()
