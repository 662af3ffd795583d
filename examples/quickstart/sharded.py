"""ARSAM on several devices: ``jit`` with ``NamedSharding``, here on four forced CPU devices."""

import os

# Set before JAX is imported. Leave both out on a real machine, where JAX finds the devices.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
os.environ.setdefault("NPROC", "8")  # forced devices can deadlock with one thread each

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import arsam_jax

STEPS, BATCH_SIZE = 200, 64

tx = optax.chain(
    arsam_jax.arsam(rho=0.1, alpha=0.4, segment_length=8),
    optax.sgd(optax.cosine_decay_schedule(0.1, STEPS), momentum=0.9),
)


def apply(params, images):
    return jax.nn.relu(images @ params["hidden"]) @ params["output"]


def loss_fn(params, batch):
    images, labels = batch  # of all devices, so the mean is over the whole batch
    logits = apply(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


grad = jax.grad(loss_fn)


def train_step(params, opt_state, batch):  # as on one device
    updates, opt_state = tx.update(
        grad(params, batch), opt_state, params, grad_fn=lambda params: grad(params, batch)
    )
    return optax.apply_updates(params, updates), opt_state


def main():
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    images, test_images, labels, test_labels = train_test_split(images, labels, random_state=0)

    mesh = Mesh(jax.devices(), ("batch",))
    everywhere, by_row = NamedSharding(mesh, P()), NamedSharding(mesh, P("batch"))
    hidden, output = jax.random.split(jax.random.key(0))
    make = jax.nn.initializers.he_normal()
    params = {"hidden": make(hidden, (64, 128)), "output": make(output, (128, 10))}
    params, opt_state = jax.device_put((params, tx.init(params)), everywhere)
    # out_shardings fixes the shardings of the results, so that the step compiles once.
    step_fn = jax.jit(train_step, donate_argnums=(0, 1), out_shardings=everywhere)

    # Once, outside jit: raises an error if the two gradients do not belong together.
    batch = jax.device_put((images[:BATCH_SIZE], labels[:BATCH_SIZE]), by_row)
    grads = grad(params, batch)
    arsam_jax.check_wiring(tx, grads, params, grad_fn=lambda params: grad(params, batch))

    rng = np.random.default_rng(1)
    for _ in range(STEPS):
        rows = rng.choice(len(labels), BATCH_SIZE, replace=False)
        batch = jax.device_put((images[rows], labels[rows]), by_row)
        params, opt_state = step_fn(params, opt_state, batch)

    arsam_jax.parallel.check_same_everywhere(opt_state)  # all devices sampled the same steps
    accuracy = np.mean(apply(params, test_images).argmax(-1) == test_labels)
    sampled = arsam_jax.metrics_dict(opt_state)["sampled_share"]
    print(f"{mesh.size} devices, %SAM {100 * sampled:.1f}, test accuracy {100 * accuracy:.1f} %")


if __name__ == "__main__":
    main()
