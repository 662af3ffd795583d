"""Frozen layers with Flax NNX: a new last layer, for mirrored digits, on a trained network."""

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import arsam_jax.flax

STEPS, BATCH_SIZE = 200, 64
MIRROR = np.arange(64).reshape(8, 8)[:, ::-1].ravel()
HEAD = nnx.All(nnx.Param, nnx.PathContains("head"))  # selects the trained parameters


class Network(nnx.Module):
    def __init__(self, rngs):
        layers = nnx.Linear(64, 256, rngs=rngs), nnx.BatchNorm(256, rngs=rngs), nnx.relu
        self.body = nnx.Sequential(*layers)
        self.head = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(self.body(x))


def loss_fn(model, batch):
    images, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


@nnx.jit(static_argnames="wrt")
def train_step(model, optimizer, batch, wrt):
    # The same filter as in nnx.Optimizer. All other parameters get no gradient, no buffer and no
    # perturbation.
    loss, grads, grad_fn = arsam_jax.flax.nnx_value_and_grad(loss_fn, model, batch, wrt=wrt)
    optimizer.update(model, grads, grad_fn=grad_fn)
    return loss


def train(model, images, labels, wrt):
    tx = optax.chain(arsam_jax.arsam(rho=0.05, alpha=0.4, segment_length=8), optax.adamw(3e-3))
    optimizer = nnx.Optimizer(model, tx, wrt=wrt)
    batch = images[:BATCH_SIZE], labels[:BATCH_SIZE]
    _, grads, grad_fn = arsam_jax.flax.nnx_value_and_grad(loss_fn, model, batch, wrt=wrt)
    arsam_jax.check_wiring(tx, grads, nnx.state(model, wrt), grad_fn=grad_fn)
    rng = np.random.default_rng(1)
    for _ in range(STEPS):
        rows = rng.choice(len(labels), BATCH_SIZE, replace=False)
        train_step(model, optimizer, (images[rows], labels[rows]), wrt)
    sampled = arsam_jax.metrics_dict(optimizer.opt_state)["sampled_share"]
    size = sum(x.size for x in jax.tree.leaves(nnx.state(model, wrt)))
    print(f"{size} parameters trained, %SAM {100 * sampled:.1f}")


def main():
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    images, test_images, labels, test_labels = train_test_split(images, labels, random_state=0)
    trained = Network(nnx.Rngs(0))  # stands for a checkpoint
    train(trained, images, labels, nnx.Param)

    model = Network(nnx.Rngs(1))
    nnx.update(model.body, nnx.state(trained.body))  # as with a restored checkpoint
    model.body.eval()  # otherwise BatchNorm updates its statistics
    train(model, np.take(images, MIRROR, axis=1), labels, HEAD)
    frozen = nnx.state(model.body), nnx.state(trained.body)
    assert jax.tree.all(jax.tree.map(np.array_equal, *frozen))
    accuracy = np.mean(model(np.take(test_images, MIRROR, axis=1)).argmax(-1) == test_labels)
    print(f"test accuracy on mirrored digits {100 * accuracy:.1f} %")


if __name__ == "__main__":
    main()
