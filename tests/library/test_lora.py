"""LoRA in the space of the merged weights: FMLoRA and EFMLoRA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from arsam_jax import ascent, probe, sharpness_aware

RHO, SCALE, RATE, RANK, STEPS = 0.3, 0.5, 0.1, 2, 6
SHAPES = {"first": (4, 5), "second": (5, 3)}
FROZEN = {name: np.random.default_rng(1).normal(size=shape) for name, shape in SHAPES.items()}


def make_factors(rank=RANK, zero=False):
    def pair(name):
        rng, (inputs, outputs) = np.random.default_rng(len(name)), SHAPES[name]
        b = rng.normal(size=(rank, outputs)) * (not zero)
        return {"a": rng.normal(size=(inputs, rank)), "b": b}

    return {name: pair(name) for name in SHAPES} | {"bias": np.full(3, 0.2)}


def make_batch(step):
    rng = np.random.default_rng([9, step])
    return rng.normal(size=(8, 4)), rng.normal(size=(8, 3))


def loss_of_merged(merged, bias, batch):
    hidden = jnp.tanh(batch[0] @ merged["first"])
    return jnp.square(hidden @ merged["second"] + jnp.broadcast_to(bias, (8, 3)) - batch[1]).mean()


def merge(params):
    return {name: FROZEN[name] + SCALE * params[name]["a"] @ params[name]["b"] for name in SHAPES}


def grad_fn_of(batch):
    return jax.grad(lambda p: loss_of_merged(merge(p), p["bias"], batch))


def on_host(tree):
    return jax.tree.map(np.asarray, tree)


def perturbation(a, b, grad_a, grad_b):
    """ε_b for the factors of the paper's B = bᵀ and A = aᵀ: equations 12, 13 and 15."""
    A, B, grad_A, grad_B = a.T, b.T, grad_a.T, grad_b.T
    pinv = np.linalg.pinv
    gradient = 0.5 / SCALE * (grad_B @ pinv(A.T) + pinv(B.T) @ grad_A)
    return (RHO * gradient / np.linalg.norm(gradient) @ pinv(A) / SCALE).T


def perturbations(params, grads):
    return {name: perturbation(**params[name], **named(grads[name])) for name in SHAPES}


def named(pair):
    return {f"grad_{name}": x for name, x in pair.items()}


def moved(params, steps_of_b):
    pairs = {name: params[name] | {"b": params[name]["b"] + steps_of_b[name]} for name in SHAPES}
    return params | pairs


def fmlora():
    def update(params, batch):
        grads = on_host(grad_fn_of(batch)(params))
        return grad_fn_of(batch)(moved(params, perturbations(params, grads)))

    return update


def efmlora(weight):
    """The mean of the authors' code; ``weight`` is that of the newest perturbation."""
    mean = {name: np.zeros((RANK, SHAPES[name][1])) for name in SHAPES}

    def update(params, batch):
        nonlocal mean
        point = moved(params, mean)
        grads = on_host(grad_fn_of(batch)(point))
        newest = perturbations(point, grads)
        mean = {name: (1 - weight) * mean[name] + weight * newest[name] for name in SHAPES}
        return grads

    return update


DIRECTION = ascent.merged_lora(SCALE)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("own_probe", "reference"),
    [
        (probe.perturb(DIRECTION), fmlora()),
        (probe.moving_average(ascent=DIRECTION), efmlora(0.9)),
    ],
    ids=["fmlora", "efmlora"],
)
def test_it_follows_the_paper_and_the_authors_code(own_probe, reference):
    tx = sharpness_aware(RHO, probe=own_probe)

    @jax.jit
    def step(params, state, batch):
        grad_fn = grad_fn_of(batch)
        updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
        return jax.tree.map(lambda w, u: w - RATE * u, params, updates), state

    ours, theirs = (make_factors(), make_factors())
    state = tx.init(ours)
    for i in range(STEPS):
        ours, state = step(ours, state, make_batch(i))
        grads = on_host(reference(theirs, make_batch(i)))
        theirs = jax.tree.map(lambda w, g: w - RATE * g, theirs, grads)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-9)


def direction_of(params, direction=DIRECTION):
    grads = grad_fn_of(make_batch(0))(params)
    return direction.update(grads, direction.init(params), params)[0]


@pytest.mark.usefixtures("x64")
def test_with_invertible_factors_the_merged_weights_move_as_sam_moves_them():
    frozen, batch = jnp.asarray(FROZEN["first"][:, :4]), make_batch(0)

    def loss(merged):
        return jnp.square(jnp.tanh(batch[0] @ merged)).mean()

    rng = np.random.default_rng(4)
    params = {"a": rng.normal(size=(4, 4)), "b": rng.normal(size=(4, 4))}
    grads = jax.grad(lambda p: loss(frozen + SCALE * p["a"] @ p["b"]))(params)
    found, _ = DIRECTION.update(grads, DIRECTION.init(params), params)
    of_merged = jax.grad(loss)(frozen + SCALE * params["a"] @ params["b"])
    expected = of_merged / np.linalg.norm(of_merged)
    np.testing.assert_allclose(SCALE * params["a"] @ found["b"], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_only_b_is_perturbed_and_b_of_zero_is_no_singularity():
    params = make_factors(zero=True)
    found = direction_of(params)
    for name in SHAPES:
        assert not found[name]["a"].any()
        moved_weights = SCALE * params[name]["a"] @ found[name]["b"]
        np.testing.assert_allclose(np.linalg.norm(moved_weights), 1, rtol=1e-5)
    assert not found["bias"].any()


def test_a_gradient_of_zero_gives_no_perturbation():
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), make_factors())
    zeros = jax.tree.map(jnp.zeros_like, params)
    found, _ = DIRECTION.update(zeros, DIRECTION.init(params), params)
    assert all((x == 0).all() for x in jax.tree.leaves(found))


def test_stacked_layers_are_pairs_of_their_own():
    rng, direction = np.random.default_rng(2), ascent.merged_lora()
    shapes = {"a": (3, 4, 2), "b": (3, 2, 5)}
    params, grads = (
        {name: jnp.asarray(rng.normal(size=shapes[name]), jnp.float32) for name in shapes}
        for _ in range(2)
    )
    found, _ = direction.update(grads, direction.init(params), params)
    for i in range(3):
        one = jax.tree.map(lambda x, i=i: x[i], (params, grads))
        expected, _ = direction.update(one[1], direction.init(one[0]), one[0])
        np.testing.assert_allclose(found["b"][i], expected["b"], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("standard_promotion")
def test_flax_nnx_with_its_own_lora():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(4, 3, rngs=rngs)
            self.lora = nnx.LoRA(4, RANK, 3, rngs=rngs)

        def __call__(self, x):
            return self.layer(x) + self.lora(x)

    graphdef, params, rest = nnx.split(Network(nnx.Rngs(0)), nnx.LoRAParam, ...)
    images, targets = (jnp.asarray(x, jnp.float32) for x in make_batch(0))

    def loss(params):
        model = nnx.merge(graphdef, params, rest, copy=True)
        return jnp.square(model(images) - targets).mean()

    direction = ascent.merged_lora(factors=("lora_a", "lora_b"))
    tx = sharpness_aware(RHO, probe=probe.perturb(direction))
    grad_fn = jax.grad(loss)
    before, state = loss(params), tx.init(params)
    for _ in range(3):
        updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
        params = jax.tree.map(lambda w, u: w - 0.1 * u, params, updates)
    assert loss(params) < before


@pytest.mark.parametrize(
    ("factors", "params", "message"),
    [
        (
            ("a", "b"),
            {"kernel": np.ones((2, 2))},
            r"factors must name .* got \('a', 'b'\) for kern",
        ),
        (
            ("a", "b"),
            {"a": np.ones((4, 2)), "b": np.ones((3, 5))},
            r"must have shapes \(inputs, r\) and \(r, outputs\), got \(4, 2\) and \(3, 5\)",
        ),
    ],
)
def test_parameters_without_factors_are_an_error_in_init(factors, params, message):
    with pytest.raises(ValueError, match=message):
        ascent.merged_lora(factors=factors).init(params)


def test_bad_arguments_are_refused_by_name():
    with pytest.raises(
        ValueError, match=r"^factors must be the two names of a and b, got \('a',\)"
    ):
        ascent.merged_lora(factors=("a",))  # pyright: ignore
    with pytest.raises(ValueError, match=r"^scale must be .*, got 0"):
        ascent.merged_lora(0)
    with pytest.raises(ValueError, match=r"needs params"):
        DIRECTION.update(make_factors(), DIRECTION.init(make_factors()))
