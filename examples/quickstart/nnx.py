"""ARSAM with Flax NNX: BatchNorm, dropout, and gradients accumulated over micro-batches."""

import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import arsam_jax.flax

STEPS, BATCH_SIZE = 200, 64
MICROBATCHES = 2  # run one after another to save memory; 1 runs the whole batch at once


class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 128, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(128, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.output = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        return self.output(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def loss_fn(model, batch):
    images, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


def value_and_grad(model, batch):
    # Used in place of nnx.value_and_grad. The grad_fn that it returns uses the same micro-batches
    # and dropout masks, and does not change the statistics of BatchNorm.
    return arsam_jax.flax.nnx_value_and_grad(loss_fn, model, batch, num_microbatches=MICROBATCHES)


@nnx.jit
def train_step(model, optimizer, batch):
    loss, grads, grad_fn = value_and_grad(model, batch)
    optimizer.update(model, grads, grad_fn=grad_fn)
    return loss


def main():
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    images, test_images, labels, test_labels = train_test_split(images, labels, random_state=0)

    model = Network(nnx.Rngs(0))
    # The transformation comes first, in front of any optimizer. In runs of more than 5,000 steps
    # leave out segment_length.
    tx = optax.chain(arsam_jax.arsam(rho=0.1, alpha=0.4, segment_length=8), optax.adamw(3e-3))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    # Once, outside jit, on a copy: raises an error if the two gradients do not belong together.
    trial = nnx.clone(model)
    batch = (images[:BATCH_SIZE], labels[:BATCH_SIZE])
    _, grads, grad_fn = value_and_grad(trial, batch)
    params = nnx.state(trial, nnx.Param)
    arsam_jax.check_wiring(tx, grads, params, grad_fn=grad_fn)

    rng = np.random.default_rng(1)
    for _ in range(STEPS):
        rows = rng.choice(len(labels), BATCH_SIZE, replace=False)
        train_step(model, optimizer, (images[rows], labels[rows]))

    model.eval()  # BatchNorm uses its statistics, and dropout is off
    accuracy = np.mean(model(test_images).argmax(-1) == test_labels)
    sampled = arsam_jax.metrics_dict(optimizer.opt_state)["sampled_share"]
    print(f"{STEPS} steps, %SAM {100 * sampled:.1f}, test accuracy {100 * accuracy:.1f} %")


if __name__ == "__main__":
    main()
