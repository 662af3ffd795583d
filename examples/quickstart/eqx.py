"""ARSAM with Equinox: BatchNorm, dropout, and a helper that returns both gradients."""

import equinox as eqx
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import arsam_jax
from arsam_jax.equinox import eqx_value_and_grad

STEPS, BATCH_SIZE = 200, 64

tx = optax.chain(arsam_jax.arsam(rho=0.1, alpha=0.4, segment_length=8), optax.adamw(3e-3))


class Network(eqx.Module):
    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    output: eqx.nn.Linear

    def __init__(self, key):
        first, last = jax.random.split(key)
        self.hidden = eqx.nn.Linear(64, 128, use_bias=False, key=first)
        self.norm = eqx.nn.BatchNorm(128, axis_name="batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.2)
        self.output = eqx.nn.Linear(128, 10, key=last)

    def __call__(self, x, state, key=None):  # one example
        x, state = self.norm(self.hidden(x), state)
        return self.output(self.dropout(jax.nn.relu(x), key=key)), state


def loss_fn(model, state, batch, key):
    images, labels = batch
    keys = jax.random.split(key, len(labels))
    logits, state = jax.vmap(model, (0, None, 0), (0, None), axis_name="batch")(images, state, keys)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state


@eqx.filter_jit
def train_step(model, state, opt_state, batch, key):
    # Both gradients use the same key. The new statistics of BatchNorm come from the first one.
    (loss, state), grads, params, grad_fn = eqx_value_and_grad(
        loss_fn, model, state, batch, key, has_aux=True
    )
    updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)
    return eqx.apply_updates(model, updates), state, opt_state, loss


def main():
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    images, test_images, labels, test_labels = train_test_split(images, labels, random_state=0)
    model, state = eqx.nn.make_with_state(Network)(jax.random.key(0))
    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    # Once, outside jit: raises an error if the two gradients do not belong together.
    batch = images[:BATCH_SIZE], labels[:BATCH_SIZE]
    _, grads, params, grad_fn = eqx_value_and_grad(
        loss_fn, model, state, batch, jax.random.key(1), has_aux=True
    )
    arsam_jax.check_wiring(tx, grads, params, grad_fn=grad_fn)

    for step in range(STEPS):
        rows = np.random.default_rng(step).choice(len(labels), BATCH_SIZE, replace=False)
        batch, key = (images[rows], labels[rows]), jax.random.fold_in(jax.random.key(1), step)
        model, state, opt_state, _ = train_step(model, state, opt_state, batch, key)
    model = eqx.nn.inference_mode(model)
    logits, _ = jax.vmap(model, (0, None), (0, None))(test_images, state)
    accuracy = np.mean(logits.argmax(-1) == test_labels)
    sampled = arsam_jax.metrics_dict(opt_state)["sampled_share"]
    print(f"{STEPS} steps, %SAM {100 * sampled:.1f}, test accuracy {100 * accuracy:.1f} %")


if __name__ == "__main__":
    main()
