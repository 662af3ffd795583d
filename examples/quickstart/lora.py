"""Low-rank adapters (LoRA) for mirrored digits, over a frozen base."""

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import arsam_jax

STEPS, BATCH_SIZE, RANK = 200, 64, 4
MIRROR = np.arange(64).reshape(8, 8)[:, ::-1].ravel()


def apply(weights, images):
    return jax.nn.relu(images @ weights["hidden"]) @ weights["output"]


def with_adapters(adapters, base):
    return {name: w + adapters[name]["a"] @ adapters[name]["b"] for name, w in base.items()}


def cross_entropy(weights, batch):
    images, labels = batch
    logits = apply(weights, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(loss_fn, params, images, labels):
    tx = optax.chain(arsam_jax.arsam(rho=0.05, alpha=0.4, segment_length=8), optax.adam(1e-2))
    grad = jax.grad(loss_fn)

    @jax.jit
    def train_step(params, opt_state, batch):
        updates, opt_state = tx.update(
            grad(params, batch), opt_state, params, grad_fn=lambda params: grad(params, batch)
        )
        return optax.apply_updates(params, updates), opt_state

    batch = images[:BATCH_SIZE], labels[:BATCH_SIZE]
    grads = grad(params, batch)
    arsam_jax.check_wiring(tx, grads, params, grad_fn=lambda params: grad(params, batch))
    opt_state, rng = tx.init(params), np.random.default_rng(1)
    for _ in range(STEPS):
        rows = rng.choice(len(labels), BATCH_SIZE, replace=False)
        params, opt_state = train_step(params, opt_state, (images[rows], labels[rows]))
    sampled = arsam_jax.metrics_dict(opt_state)["sampled_share"]
    print(f"{sum(x.size for x in jax.tree.leaves(params))} parameters, %SAM {100 * sampled:.1f}")
    return params


def main():
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    images, test_images, labels, test_labels = train_test_split(images, labels, random_state=0)
    make, keys = jax.nn.initializers.he_normal(), jax.random.split(jax.random.key(0), 4)
    hidden, output = make(keys[0], (64, 128)), make(keys[1], (128, 10))
    base = train(cross_entropy, {"hidden": hidden, "output": output}, images, labels)

    mirrored, test_mirrored = (np.take(x, MIRROR, axis=1) for x in (images, test_images))
    adapters = {  # b is 0, so training starts at the base
        "hidden": {"a": make(keys[2], (64, RANK)), "b": np.zeros((RANK, 128), np.float32)},
        "output": {"a": make(keys[3], (128, RANK)), "b": np.zeros((RANK, 10), np.float32)},
    }

    # loss_fn closes over the base, which then gets no gradient, no buffer and no perturbation.
    def loss_fn(adapters, batch):
        return cross_entropy(with_adapters(adapters, base), batch)

    adapters = train(loss_fn, adapters, mirrored, labels)
    for name, weights in {"base": base, "base + adapters": with_adapters(adapters, base)}.items():
        accuracy = np.mean(apply(weights, test_mirrored).argmax(-1) == test_labels)
        print(f"{name}: test accuracy on mirrored digits {100 * accuracy:.1f} %")


if __name__ == "__main__":
    main()
