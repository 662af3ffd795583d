"""bfloat16, and float16 with a dynamic loss scale; parameters and gradients stay float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import arsam_jax

STEPS, BATCH_SIZE, GROWTH_STEPS = 300, 64, 100

tx = optax.chain(
    arsam_jax.arsam(rho=0.1, alpha=0.4, segment_length=8),
    optax.apply_if_finite(optax.adamw(3e-3), max_consecutive_errors=50),  # skips bad steps
)


def apply(params, images, dtype):
    params, images = jax.tree.map(lambda x: x.astype(dtype), (params, images))
    logits = jax.nn.relu(images @ params["hidden"]) @ params["output"]
    return logits.astype(jnp.float32)  # for the softmax


def loss_fn(params, batch, dtype):
    images, labels = batch
    logits = apply(params, images, dtype)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def grad(params, batch, scale, dtype):
    # Unscaled here, because the transformation reuses gradients after the scale has changed.
    scaled = jax.grad(lambda params: scale * loss_fn(params, batch, dtype))(params)
    return jax.tree.map(lambda g: g / scale, scaled)


def train_step(params, opt_state, scale, steps, batch, dtype):
    updates, opt_state = tx.update(
        grad(params, batch, scale, dtype),
        opt_state,
        params,
        grad_fn=lambda params: grad(params, batch, scale, dtype),
    )
    if dtype == jnp.float16:  # bfloat16 has the range of float32 and needs no scale
        steps = jnp.where(optax.tree.get(opt_state, "last_finite"), steps + 1, 0)  # in a row
        scale = jnp.where(steps == 0, scale / 2, scale)
        scale = jnp.where((steps > 0) & (steps % GROWTH_STEPS == 0), scale * 2, scale)
    return optax.apply_updates(params, updates), opt_state, scale, steps


def main():
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    images, test_images, labels, test_labels = train_test_split(images, labels, random_state=0)
    hidden, output = jax.random.split(jax.random.key(0))
    make = jax.nn.initializers.he_normal()
    start = {"hidden": make(hidden, (64, 128)), "output": make(output, (128, 10))}

    # Once, outside jit: raises an error if only one of the two gradients is unscaled.
    args = (images[:BATCH_SIZE], labels[:BATCH_SIZE]), 2.0**10, jnp.float16
    grads = grad(start, *args)
    arsam_jax.check_wiring(tx, grads, start, grad_fn=lambda params: grad(params, *args))

    step_fn = jax.jit(train_step, static_argnames="dtype")
    for dtype, scale in {jnp.bfloat16: 1.0, jnp.float16: 2.0**24}.items():
        state, rng = (start, tx.init(start), scale, 0), np.random.default_rng(1)
        for _ in range(STEPS):
            rows = rng.choice(len(labels), BATCH_SIZE, replace=False)
            state = step_fn(*state, (images[rows], labels[rows]), dtype=dtype)
        params, opt_state, scale, _ = state
        accuracy = np.mean(apply(params, test_images, dtype).argmax(-1) == test_labels)
        sampled = arsam_jax.metrics_dict(opt_state)["sampled_share"]
        skipped = optax.tree.get(opt_state, "total_notfinite")
        print(f"{dtype.__name__}: {skipped} steps skipped, scale {scale:.0f}")
        print(f"%SAM {100 * sampled:.1f}, test accuracy {100 * accuracy:.1f} %")


if __name__ == "__main__":
    main()
