"""Against PyTorch implementations not written here: ``make test-peers`` installs and runs these.

pytorch_optimizer and zij. Where they decompose per tensor, as both LookSAMs do, the comparison has
one tensor; docs/api/methods.md lists the deviations.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import arsam_jax

torch = pytest.importorskip("torch")
pytorch_optimizer = pytest.importorskip("pytorch_optimizer")
zij = pytest.importorskip("zij")

RHO, LEARNING_RATE, STEPS = 0.3, 0.02, 30


def draw_batch(step):
    rng = np.random.default_rng([5, step])
    return rng.normal(size=(8, 6)), rng.normal(size=8)


def run_theirs(make, shapes):
    """Trains with a PyTorch optimizer of closures; ``loss.backward()`` comes before the step."""
    first = np.random.default_rng(0).normal(size=6)
    ends = np.cumsum(shapes)
    params = [
        torch.nn.Parameter(torch.tensor(first[end - size : end]))
        for size, end in zip(shapes, ends, strict=True)
    ]
    optimizer = make(params)
    for step in range(STEPS):
        x, y = map(torch.tensor, draw_batch(step))

        def backward(x=x, y=y):
            optimizer.zero_grad()
            loss = ((torch.tanh(x @ torch.cat(params)) - y) ** 2).mean()
            loss.backward()
            return loss

        backward()
        optimizer.step(backward)
    return torch.cat(params).detach().numpy()


def run_ours(link, shapes):
    first = np.random.default_rng(0).normal(size=6)
    params = [jnp.asarray(x) for x in np.split(first, np.cumsum(shapes)[:-1])]
    tx = optax.chain(link, optax.sgd(LEARNING_RATE))
    state = tx.init(params)

    @jax.jit
    def update(params, state, batch):
        def grad_fn(params):
            def loss_fn(params):
                return jnp.mean((jnp.tanh(batch[0] @ jnp.concatenate(params)) - batch[1]) ** 2)

            return jax.grad(loss_fn)(params)

        updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state

    for step in range(STEPS):
        params, state = update(params, state, draw_batch(step))
    return np.concatenate(params)


def with_sgd(cls, **kwargs):
    return lambda params: cls(params, torch.optim.SGD, lr=LEARNING_RATE, **kwargs)


PEERS = {
    "pytorch_optimizer SAM": (
        with_sgd(pytorch_optimizer.SAM, rho=RHO),
        arsam_jax.sam(RHO),
        (4, 2),
    ),
    "pytorch_optimizer SAM adaptive": (
        with_sgd(pytorch_optimizer.SAM, rho=RHO, adaptive=True),
        arsam_jax.asam(RHO, eta=0),
        (4, 2),
    ),
    "pytorch_optimizer LookSAM": (
        with_sgd(pytorch_optimizer.LookSAM, rho=RHO, k=3, alpha=0.7),
        arsam_jax.looksam(RHO, 3, 0.7),
        (6,),
    ),
    "pytorch_optimizer FriendlySAM": (
        with_sgd(pytorch_optimizer.FriendlySAM, rho=RHO, sigma=0.8, lmbda=0.7),
        arsam_jax.friendly_sam(RHO, sigma=0.8, decay=0.7),
        (4, 2),
    ),
    "zij SAM": (with_sgd(zij.SAM, rho=RHO), arsam_jax.sam(RHO), (4, 2)),
    "zij ASAM": (with_sgd(zij.ASAM, rho=RHO), arsam_jax.asam(RHO, eta=0), (4, 2)),
    "zij GSAM": (
        with_sgd(zij.GSAM, rho=RHO, gsam_alpha=0.4),
        arsam_jax.gsam(RHO, 0.4),
        (4, 2),
    ),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", PEERS)
def test_ours_equals_theirs(name):
    theirs, ours, shapes = PEERS[name]
    np.testing.assert_allclose(run_ours(ours, shapes), run_theirs(theirs, shapes), rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_their_looksam_decomposes_per_tensor_and_ours_does_not():
    theirs, ours, _ = PEERS["pytorch_optimizer LookSAM"]
    assert not np.allclose(run_ours(ours, (4, 2)), run_theirs(theirs, (4, 2)), rtol=1e-6)
