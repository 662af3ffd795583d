"""ARSAM with Flax Linen: BatchNorm, dropout, and a train state that forwards ``grad_fn``."""

import jax
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import arsam_jax.flax

STEPS, BATCH_SIZE = 200, 64


class Network(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(128, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(10)(x)


class TrainState(arsam_jax.flax.TrainState):  # Flax's own does not forward grad_fn
    batch_stats: dict


def loss_fn(params, batch_stats, batch, dropout_key):
    variables = {"params": params, "batch_stats": batch_stats}
    logits, changed = Network().apply(
        variables, batch[0], train=True, rngs={"dropout": dropout_key}, mutable=["batch_stats"]
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()
    return loss, changed["batch_stats"]


grad = jax.grad(loss_fn, has_aux=True)


@jax.jit
def train_step(state, batch):
    dropout_key = jax.random.fold_in(jax.random.key(1), state.step)
    args = state.batch_stats, batch, dropout_key  # the same for both gradients
    grads, batch_stats = grad(state.params, *args)
    # [0] drops the statistics of the second pass, so those of the first pass are kept.
    return state.apply_gradients(
        grads=grads, grad_fn=lambda params: grad(params, *args)[0], batch_stats=batch_stats
    )


def main():
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    images, test_images, labels, test_labels = train_test_split(images, labels, random_state=0)

    # The transformation comes first, in front of any optimizer. In runs of more than 5,000 steps
    # leave out segment_length.
    tx = optax.chain(arsam_jax.arsam(rho=0.1, alpha=0.4, segment_length=8), optax.adamw(3e-3))
    variables = Network().init(jax.random.key(0), images[:1], train=False)
    state = TrainState.create(apply_fn=Network().apply, tx=tx, **variables)

    # Once, outside jit: raises an error if the two gradients do not belong together.
    args = state.batch_stats, (images[:BATCH_SIZE], labels[:BATCH_SIZE]), jax.random.key(1)
    grads, _ = grad(state.params, *args)
    arsam_jax.check_wiring(tx, grads, state.params, grad_fn=lambda params: grad(params, *args)[0])

    for step in range(STEPS):
        rows = np.random.default_rng(step).choice(len(labels), BATCH_SIZE, replace=False)
        state = train_step(state, (images[rows], labels[rows]))

    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = state.apply_fn(variables, test_images, train=False)
    accuracy = np.mean(logits.argmax(-1) == test_labels)
    sampled = arsam_jax.metrics_dict(state.opt_state)["sampled_share"]
    print(f"{STEPS} steps, %SAM {100 * sampled:.1f}, test accuracy {100 * accuracy:.1f} %")


if __name__ == "__main__":
    main()
