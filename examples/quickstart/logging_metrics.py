"""The metrics of ARSAM in TensorBoard, and with one other line in W&B or MLflow."""

import functools
import tempfile

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tensorboardX import SummaryWriter

import arsam_jax

STEPS, BATCH_SIZE = 400, 64

tx = optax.chain(
    arsam_jax.arsam(rho=0.1, alpha=0.4, segment_length=8),
    optax.sgd(optax.cosine_decay_schedule(0.1, STEPS), momentum=0.9),
)


def apply(params, images):
    return jax.nn.relu(images @ params["hidden"]) @ params["output"]


def loss_fn(params, batch):
    images, labels = batch
    logits = apply(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


grad = jax.grad(loss_fn)


@functools.partial(jax.jit, static_argnames="measure")
def train_step(params, opt_state, batch, measure):
    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
    updates, opt_state = tx.update(
        grads, opt_state, params, grad_fn=lambda params: grad(params, batch), measure=measure
    )
    return optax.apply_updates(params, updates), opt_state, loss


def main():
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    images, test_images, labels, test_labels = train_test_split(images, labels, random_state=0)
    hidden, output = jax.random.split(jax.random.key(0))
    make = jax.nn.initializers.he_normal()
    params = {"hidden": make(hidden, (64, 128)), "output": make(output, (128, 10))}
    opt_state = tx.init(params)

    # Once, outside jit: raises an error if the two gradients do not belong together.
    batch = images[:BATCH_SIZE], labels[:BATCH_SIZE]
    grads = grad(params, batch)
    arsam_jax.check_wiring(tx, grads, params, grad_fn=lambda params: grad(params, batch))

    folder, rng = tempfile.mkdtemp(prefix="arsam"), np.random.default_rng(1)
    with SummaryWriter(folder) as writer:
        for step in range(STEPS):
            rows = rng.choice(len(labels), BATCH_SIZE, replace=False)
            # Measures norms on 4 consecutive steps of each 20, since only some steps are sampled.
            params, opt_state, loss = train_step(
                params, opt_state, (images[rows], labels[rows]), measure=step % 20 >= 16
            )
            if step % 20 == 19:  # not on every step, because metrics_dict waits for the step
                metrics = {"loss": float(loss), **arsam_jax.metrics_dict(opt_state)}
                # W&B: wandb.log(metrics, step=step). MLflow: mlflow.log_metrics(metrics, step=step)
                for name, value in metrics.items():
                    writer.add_scalar(name, value, step)

    accuracy = np.mean(apply(params, test_images).argmax(-1) == test_labels)
    sampled = arsam_jax.metrics_dict(opt_state)["sampled_share"]
    print(f"%SAM {100 * sampled:.1f}, test accuracy {100 * accuracy:.1f} %")
    print(f"to see the curves: tensorboard --logdir {folder}")


if __name__ == "__main__":
    main()
