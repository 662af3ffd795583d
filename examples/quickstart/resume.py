"""Stops in the middle, saves with Orbax, and resumes bit for bit as if it had never stopped."""

import tempfile
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import arsam_jax

STEPS, BATCH_SIZE = 200, 64

tx = optax.chain(arsam_jax.arsam(rho=0.1, alpha=0.4, segment_length=8), optax.sgd(0.1, 0.9))


def apply(params, images):
    return jax.nn.relu(images @ params["hidden"]) @ params["output"]


def loss_fn(params, batch):
    images, labels = batch
    logits = apply(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


grad = jax.grad(loss_fn)


@jax.jit
def train_step(params, opt_state, batch):
    updates, opt_state = tx.update(
        grad(params, batch), opt_state, params, grad_fn=lambda params: grad(params, batch)
    )
    return optax.apply_updates(params, updates), opt_state


def main():
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    images, test_images, labels, test_labels = train_test_split(images, labels, random_state=0)
    hidden, output = jax.random.split(jax.random.key(0))
    make = jax.nn.initializers.he_normal()
    params = {"hidden": make(hidden, (64, 128)), "output": make(output, (128, 10))}
    start = params, tx.init(params)

    batch = images[:BATCH_SIZE], labels[:BATCH_SIZE]
    grads = grad(params, batch)
    arsam_jax.check_wiring(tx, grads, params, grad_fn=lambda params: grad(params, batch))

    def train(state, steps):
        params, opt_state = state
        for step in steps:  # the batch depends on the step alone, also after resuming
            rows = np.random.default_rng(step).choice(len(labels), BATCH_SIZE, replace=False)
            params, opt_state = train_step(params, opt_state, (images[rows], labels[rows]))
        return params, opt_state

    whole = train(start, range(STEPS))

    with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
        path = Path(folder) / "checkpoint"
        # The optimizer state has everything: the PSF and its age, the controller, the momentum.
        checkpointer.save(path, train(start, range(STEPS // 2)))
        checkpointer.wait_until_finished()
        # start gives shapes, dtypes and structure. A new process makes it with init, as above.
        resumed = train(checkpointer.restore(path, start), range(STEPS // 2, STEPS))

    assert jax.tree.all(jax.tree.map(np.array_equal, resumed, whole))
    accuracy = np.mean(apply(resumed[0], test_images).argmax(-1) == test_labels)
    sampled = arsam_jax.metrics_dict(resumed[1])["sampled_share"]
    print(f"saved after {STEPS // 2} of {STEPS} steps, resumed: the same bits as without a stop")
    print(f"%SAM {100 * sampled:.1f}, test accuracy {100 * accuracy:.1f} %")


if __name__ == "__main__":
    main()
