"""Functional SAM: the Jacobian at the perturbed parameters, the derivative by the outputs at w."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import arsam_jax
from arsam_jax import functional

RHO, RATE, EXAMPLES, CLASSES = 0.3, 0.2, 8, 3
SHAPES = {"hidden": (4, 5), "out": (5, CLASSES)}


def draw(name):
    return np.random.default_rng([3, len(name)]).normal(size=SHAPES[name])


def make_params(dtype=jnp.float32):
    return {name: jnp.asarray(draw(name), dtype) for name in SHAPES}


def make_batch(step, dtype=jnp.float32):
    rng = np.random.default_rng([5, step])
    images = jnp.asarray(rng.normal(size=(EXAMPLES, 4)), dtype)
    return images, jnp.asarray(rng.integers(CLASSES, size=EXAMPLES), jnp.int32)


def outputs_fn(params, batch):
    return jnp.tanh(batch[0].astype(params["hidden"].dtype) @ params["hidden"]) @ params["out"]


def loss_fn(outputs, batch):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1]).mean()


def make_step(tx, value_and_grad):
    def step(params, opt_state, batch):
        _, grads, grad_fn = value_and_grad(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), opt_state

    return step


def train(tx, steps, value_and_grad, dtype=jnp.float32):
    step, params = jax.jit(make_step(tx, value_and_grad)), make_params(dtype)
    opt_state = tx.init(params)
    for i in range(steps):
        params, opt_state = step(params, opt_state, make_batch(i, dtype))
    return params, opt_state


# The same in NumPy, from equation and definition.


def forward(w, images):
    hidden = np.tanh(images @ w["hidden"])
    return hidden, hidden @ w["out"]


def by_outputs(w, batch):
    """The derivative of the mean cross entropy by the logits."""
    p = scipy.special.softmax(forward(w, batch[0])[1], axis=1)
    return (p - np.eye(CLASSES)[batch[1]]) / EXAMPLES


def pulled_back(w, images, cotangent):
    hidden, _ = forward(w, images)
    by_hidden = (cotangent @ w["out"].T) * (1 - hidden**2)
    return {"hidden": images.T @ by_hidden, "out": hidden.T @ cotangent}


def unit(tree):
    norm = np.sqrt(sum((x**2).sum() for x in tree.values()))
    return {name: x / norm for name, x in tree.items()}


def moved(w, direction, rho=RHO):
    return {name: w[name] + rho * direction[name] for name in w}


class Functional:
    """g and g_A of arXiv 2502.02407; with ``decay``, along g / (√v̂ + 1e-8)."""

    def __init__(self, decay=None):
        self.decay, self.v, self.count = decay, dict.fromkeys(SHAPES, 0.0), 0

    def gradients(self, w, batch):
        cotangent = by_outputs(w, batch)
        g = pulled_back(w, batch[0], cotangent)
        direction = g
        if self.decay is not None:
            self.count += 1
            for name in g:
                self.v[name] = self.decay * self.v[name] + (1 - self.decay) * g[name] ** 2
            corrected = {name: v / (1 - self.decay**self.count) for name, v in self.v.items()}
            direction = {name: g[name] / (np.sqrt(corrected[name]) + 1e-8) for name in g}
        return g, pulled_back(moved(w, unit(direction)), batch[0], cotangent)


def follow(tx, update, dtype=jnp.float64, steps=6):
    """Trains with ``tx`` and with ``update(step, w, batch) -> gradient``, and compares both."""
    value_and_grad = functional.value_and_grad(outputs_fn, loss_fn)
    params, _ = train(optax.chain(tx, optax.sgd(RATE)), steps, value_and_grad, dtype)
    w = {name: draw(name) for name in SHAPES}
    for i in range(steps):
        batch = [np.asarray(x) for x in make_batch(i, dtype)]
        w = moved(w, update(i, w, batch), -RATE)
    chex.assert_trees_all_close(params, w, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("decay", [None, 0.9])
def test_it_follows_its_paper_with_and_without_preconditioning(decay):
    oracle = Functional(decay)
    tx = arsam_jax.sam(RHO) if decay is None else arsam_jax.preconditioned_sam(RHO, decay=decay)
    follow(tx, lambda step, w, batch: oracle.gradients(w, batch)[1])


@pytest.mark.usefixtures("x64")
def test_its_psf_is_kept_and_reused():
    oracle, psf = Functional(), None

    def update(step, w, batch):
        nonlocal psf
        g, perturbed = oracle.gradients(w, batch)
        if step % 3 == 0:
            psf = {name: perturbed[name] - g[name] for name in g}
        return moved(g, psf, 1)

    tx = arsam_jax.sharpness_aware(
        RHO,
        sampling=arsam_jax.sampling.every_k(3),
        correction=arsam_jax.correction.reuse_psf(None),
    )
    follow(tx, update)


def test_at_the_parameters_it_is_the_gradient_and_check_wiring_accepts_it():
    params, batch = make_params(), make_batch(0)
    loss, grads, grad_fn = functional.value_and_grad(outputs_fn, loss_fn)(params, batch)
    expected = jax.value_and_grad(lambda p: loss_fn(outputs_fn(p, batch), batch))(params)
    chex.assert_trees_all_close((loss, grads), expected, rtol=1e-6)
    chex.assert_trees_all_close(grad_fn(params), grads, rtol=1e-6)
    tx = optax.chain(arsam_jax.sam(RHO), optax.sgd(0.1))
    arsam_jax.check_wiring(tx, grads, params, grad_fn=grad_fn)


def test_check_wiring_finds_a_grad_fn_of_another_batch():
    params = make_params()
    value_and_grad = functional.value_and_grad(outputs_fn, loss_fn)
    _, grads, _ = value_and_grad(params, make_batch(0))
    _, _, grad_fn = value_and_grad(params, make_batch(1))
    with pytest.raises(ValueError, match="another mini-batch"):
        arsam_jax.check_wiring(arsam_jax.sam(RHO), grads, params, grad_fn=grad_fn)


def perturbed_gradient(outputs_fn, loss_fn, params):
    """Of functional SAM, SAM, and without perturbation."""
    batch, tx = make_batch(0), arsam_jax.sam(RHO)
    _, grads, grad_fn = functional.value_and_grad(outputs_fn, loss_fn)(params, batch)
    plain_grad_fn = jax.grad(lambda p: loss_fn(outputs_fn(p, batch), batch))
    both = (
        tx.update(grads, tx.init(params), params, grad_fn=f)[0] for f in (grad_fn, plain_grad_fn)
    )
    return *both, grads


def test_for_a_loss_linear_in_the_outputs_it_is_sam():
    ours, sam, grads = perturbed_gradient(outputs_fn, lambda z, batch: z.mean(), make_params())
    chex.assert_trees_all_equal(ours, sam)
    assert not np.allclose(ours["out"], grads["out"], rtol=1e-3)


def test_for_outputs_linear_in_the_parameters_it_is_the_base_optimizer():
    def linear(params, batch):
        return batch[0] @ params["hidden"][:, :CLASSES]

    ours, sam, grads = perturbed_gradient(linear, loss_fn, make_params())
    chex.assert_trees_all_close(ours, grads, rtol=1e-6)
    assert not np.allclose(sam["hidden"], grads["hidden"], rtol=1e-3)


def test_a_sampled_step_costs_two_gradients_and_any_other_one():
    executed = []

    def counted(params, batch):
        jax.debug.callback(lambda: executed.append(1))
        return outputs_fn(params, batch)

    tx = arsam_jax.budgeted_sam(RHO, share=0.5)
    _, state = train(tx, 6, functional.value_and_grad(counted, loss_fn))
    jax.block_until_ready(state)
    jax.effects_barrier()
    assert len(executed) == 6 + 3

    def products(tx):
        args = make_params(), tx.init(make_params()), make_batch(0)
        step = make_step(tx, functional.value_and_grad(outputs_fn, loss_fn))
        return str(jax.jit(step).lower(*args).compile().as_text()).count(" dot(")

    base = products(optax.with_extra_args_support(optax.identity()))
    assert products(arsam_jax.sam(RHO)) == 2 * base - 1  # the second pass needs no outputs


@functools.cache
def on_one_device():
    tx = optax.chain(arsam_jax.budgeted_sam(RHO, share=0.5), optax.sgd(RATE))
    return tx, train(tx, 4, functional.value_and_grad(outputs_fn, loss_fn))


def test_micro_batches_give_the_gradients_of_the_whole_batch():
    def with_aux(params, batch):
        return outputs_fn(params, batch), {"mean": batch[0].mean()}

    parts = functional.value_and_grad(with_aux, loss_fn, has_aux=True, num_microbatches=4)

    def without_aux(params, batch):
        (loss, aux), grads, grad_fn = parts(params, batch)
        assert aux["mean"].shape == (4,)
        return loss, grads, grad_fn

    tx, expected = on_one_device()
    chex.assert_trees_all_close(train(tx, 4, without_aux), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"num_microbatches must divide the batch size 8, got 3"):
        functional.value_and_grad(outputs_fn, loss_fn, num_microbatches=3)(
            make_params(), make_batch(0)
        )


@pytest.mark.parametrize("regime", ["pmap", "shard_map", "shard_map_unchecked", "jit"])
def test_devices_equal_one(regime):
    tx, expected = on_one_device()
    mesh = Mesh(jax.devices()[:4], ("batch",))
    axis_name = None if regime == "jit" else "batch"
    step = make_step(tx, functional.value_and_grad(outputs_fn, loss_fn, axis_name=axis_name))
    state = make_params(), tx.init(make_params())
    if regime == "pmap":
        run = jax.pmap(step, axis_name="batch", devices=jax.devices()[:4])
        state = jax.tree.map(lambda x: jnp.stack([x] * 4), state)
    elif regime == "jit":
        run = jax.jit(step)
        state = jax.device_put(state, NamedSharding(mesh, P()))
    else:
        specs = P(), P(), P("batch")
        checked = regime == "shard_map"
        run = jax.jit(
            jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=(P(), P()), check_vma=checked)
        )
    for i in range(4):
        batch = make_batch(i)
        if regime == "pmap":
            batch = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), batch)
        else:
            batch = jax.device_put(batch, NamedSharding(mesh, P("batch")))
        state = run(*state, batch)
    if regime == "pmap":
        state = jax.tree.map(lambda x: x[0], state)
    chex.assert_trees_all_close(state, expected, rtol=1e-4, atol=1e-6)


def test_sixteen_bit_parameters_are_perturbed_in_float32():
    value_and_grad = functional.value_and_grad(outputs_fn, loss_fn)
    params, tx = make_params(jnp.bfloat16), arsam_jax.sam(RHO)
    step = make_step(tx, value_and_grad)
    updated, _ = step(params, tx.init(params), make_batch(0))
    chex.assert_trees_all_equal_dtypes(updated, params)
    wide, _ = step(make_params(), tx.init(make_params()), make_batch(0))
    narrow = jax.tree.map(lambda x: x.astype(jnp.float32), updated)
    chex.assert_trees_all_close(narrow, wide, atol=0.03)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: functional.value_and_grad(3, loss_fn), "outputs_fn must be a function, got 3"),
        (lambda: functional.value_and_grad(outputs_fn, None), "loss_fn must be a function, got No"),
        (
            lambda: functional.value_and_grad(outputs_fn, loss_fn, num_microbatches=0),
            "num_microbatches must be an integer >= 1, got 0",
        ),
        (
            lambda: functional.value_and_grad(outputs_fn, lambda z, batch: (z.mean(), z))(
                make_params(), make_batch(0)
            ),
            r"loss_fn\(outputs, batch\) must return the loss alone, .*has_aux=True",
        ),
    ],
)
def test_misuse_is_an_error(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
