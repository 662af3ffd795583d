"""Several processes, as on several machines. This script starts two of them itself."""

import os
import socket
import subprocess
import sys

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import arsam_jax

STEPS, BATCH_SIZE, PROCESSES = 60, 64, 2
tx = optax.chain(arsam_jax.arsam(rho=0.1, alpha=0.4, segment_length=8), optax.adamw(1e-2))


def apply(params, images):
    return jax.nn.relu(images @ params["hidden"]) @ params["output"]


def loss_fn(params, batch):
    images, labels = batch  # of all processes, so the mean is over the whole batch
    logits = apply(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


grad = jax.jit(jax.grad(loss_fn))


@jax.jit
def train_step(params, opt_state, batch):  # as in one process
    updates, opt_state = tx.update(
        grad(params, batch), opt_state, params, grad_fn=lambda params: grad(params, batch)
    )
    return optax.apply_updates(params, updates), opt_state


def train(address, process):
    # On SLURM, Open MPI, Kubernetes and Cloud TPU call it without arguments.
    jax.distributed.initialize(address, PROCESSES, int(process))
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    images, test_images, labels, test_labels = train_test_split(images, labels, random_state=0)
    mesh = Mesh(jax.devices(), ("batch",))  # the devices of all processes
    everywhere, by_row = NamedSharding(mesh, P()), NamedSharding(mesh, P("batch"))
    make, keys = jax.nn.initializers.he_normal(), jax.random.split(jax.random.key(0))
    params = {"hidden": make(keys[0], (64, 128)), "output": make(keys[1], (128, 10))}
    params, opt_state = jax.device_put((params, tx.init(params)), everywhere)

    def batch_of(step):  # all processes draw the same rows, and each reads its own
        rows = np.random.default_rng(step).choice(len(labels), BATCH_SIZE, replace=False)
        own = np.split(rows, jax.process_count())[jax.process_index()]
        parts = images[own], labels[own]
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(by_row, x), parts)

    batch = batch_of(0)  # Once, outside jit: compares the two gradients
    arsam_jax.check_wiring(tx, grad(params, batch), params, grad_fn=lambda w: grad(w, batch))
    for step in range(STEPS):
        params, opt_state = train_step(params, opt_state, batch_of(step))
    arsam_jax.parallel.check_same_everywhere(opt_state)  # all processes sampled the same steps
    accuracy = np.mean(apply(jax.device_get(params), test_images).argmax(-1) == test_labels)
    sampled = arsam_jax.metrics_dict(opt_state)["sampled_share"]
    print(f"process {process}: %SAM {100 * sampled:.1f}, test accuracy {100 * accuracy:.1f} %")


if __name__ == "__main__" and sys.argv[1:2] == ["--join"]:
    train(*sys.argv[2:])
elif __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    commands = [[sys.executable, __file__, "--join", address, str(i)] for i in range(PROCESSES)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    children = [subprocess.Popen(c, env=environment, stdout=subprocess.PIPE) for c in commands]
    print(*(child.communicate()[0].decode() for child in children), sep="", end="")
    sys.exit(max(abs(child.returncode) for child in children))
