"""ARSAM in plain JAX: a small network on scikit-learn's digits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import arsam_jax

STEPS, BATCH_SIZE = 400, 64


def init(key):
    first, last = jax.random.split(key)
    make = jax.nn.initializers.he_normal()
    return {
        "hidden": {"w": make(first, (64, 128)), "b": jnp.zeros(128)},
        "output": {"w": make(last, (128, 10)), "b": jnp.zeros(10)},
    }


def apply(params, images):
    hidden = jax.nn.relu(images @ params["hidden"]["w"] + params["hidden"]["b"])
    return hidden @ params["output"]["w"] + params["output"]["b"]


def loss_fn(params, batch):
    images, labels = batch
    logits = apply(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


grad = jax.grad(loss_fn)


# The transformation comes first: it turns gradients into sharpness-aware gradients.
# Segments have 8 steps instead of the paper's 50, because this run has fewer than 5,000 steps.
tx = optax.chain(
    arsam_jax.arsam(rho=0.1, alpha=0.4, segment_length=8),
    optax.sgd(optax.cosine_decay_schedule(0.1, STEPS), momentum=0.9),
)


@jax.jit
def train_step(params, opt_state, batch):
    # On sampled steps grad_fn is called with perturbed parameters and the same batch.
    updates, opt_state = tx.update(
        grad(params, batch), opt_state, params, grad_fn=lambda params: grad(params, batch)
    )
    return optax.apply_updates(params, updates), opt_state


def main():
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    images, test_images, labels, test_labels = train_test_split(images, labels, random_state=0)

    params = init(jax.random.key(0))
    opt_state = tx.init(params)

    # Once, outside jit: raises an error if the two gradients do not belong together.
    batch = images[:BATCH_SIZE], labels[:BATCH_SIZE]
    grads = grad(params, batch)
    arsam_jax.check_wiring(tx, grads, params, grad_fn=lambda params: grad(params, batch))

    rng = np.random.default_rng(1)
    for _ in range(STEPS):
        rows = rng.choice(len(labels), BATCH_SIZE, replace=False)
        params, opt_state = train_step(params, opt_state, (images[rows], labels[rows]))

    accuracy = np.mean(apply(params, test_images).argmax(-1) == test_labels)
    sampled = arsam_jax.metrics_dict(opt_state)["sampled_share"]  # the share with a second gradient
    print(f"{STEPS} steps, %SAM {100 * sampled:.1f}, test accuracy {100 * accuracy:.1f} %")


if __name__ == "__main__":
    main()
