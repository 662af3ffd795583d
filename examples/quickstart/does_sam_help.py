"""Does SAM help on my task? Trains the base optimizer and SAM at three values of rho."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import arsam_jax

RHOS = (0.1, 0.2, 0.4)  # for label noise; (0.05, 0.1, 0.2) for other tasks
STEPS, BATCH_SIZE, SEEDS = 1000, 64, 5


# Replace the next four functions with your data, network and optimizer.
def load_data():
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    train, val, train_labels, val_labels = train_test_split(images, labels, random_state=0)
    rng = np.random.default_rng(0)
    noisy = rng.random(len(train_labels)) < 0.4  # 40 % label noise
    train_labels = np.where(noisy, rng.integers(0, 10, len(train_labels)), train_labels)
    return train, train_labels, val, val_labels


def init(key):
    weights = jax.random.normal(key, (64 + 10, 128)) / 10
    return {"hidden": weights[:64], "output": weights[64:].T}


def apply(params, inputs):
    return jax.nn.relu(inputs @ params["hidden"]) @ params["output"]


def base_optimizer():
    return optax.sgd(optax.cosine_decay_schedule(0.1, STEPS), momentum=0.9)


def accuracy_of_run(key, tx, train, train_labels, val, val_labels):
    def loss_fn(params, inputs, labels):
        logits = apply(params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def train_step(carry, key):
        params, opt_state = carry
        rows = jax.random.choice(key, len(train_labels), (BATCH_SIZE,))

        def grad_fn(params):
            return jax.grad(loss_fn)(params, train[rows], train_labels[rows])

        updates, opt_state = tx.update(grad_fn(params), opt_state, params, grad_fn=grad_fn)
        return (optax.apply_updates(params, updates), opt_state), None

    init_key, batch_key = jax.random.split(key)
    params = init(init_key)
    carry = (params, tx.init(params))
    (params, _), _ = jax.lax.scan(train_step, carry, jax.random.split(batch_key, STEPS))
    return 100 * jnp.mean(apply(params, val).argmax(-1) == val_labels)


def main():
    data = [jnp.asarray(array) for array in load_data()]
    accuracies = {}
    for rho in (0.0, *RHOS):  # sam(0.0) is the base optimizer
        tx = optax.chain(arsam_jax.sam(rho), base_optimizer())
        run = jax.jit(lambda key, tx=tx: accuracy_of_run(key, tx, *data))
        accuracies[rho] = np.array([run(jax.random.key(seed)) for seed in range(SEEDS)])
        print(f"rho = {rho:3}: {accuracies[rho].mean():6.2f} %")
    best = max(RHOS, key=lambda rho: accuracies[rho].mean())
    gain = accuracies[best] - accuracies[0.0]
    mean, error = gain.mean(), gain.std(ddof=1) / SEEDS**0.5
    # 3 errors: Student's t of 5 seeds, one-sided 6 %, divided among the three values of rho.
    verdict = "SAM helps" if mean > 3 * error else "No clear difference"
    verdict = "SAM makes it worse" if mean < -3 * error else verdict
    print(f"{verdict}: rho = {best} {mean:+.2f} points, standard error {error:.2f}")


if __name__ == "__main__":
    main()
