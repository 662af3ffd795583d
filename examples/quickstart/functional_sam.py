"""Functional SAM for a small decoder, which learns to repeat a sequence of symbols."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import arsam_jax

STEPS, BATCH_SIZE, SYMBOLS, LENGTH, WIDTH = 300, 64, 16, 8, 64


def init(key):
    shapes = {"symbols": (SYMBOLS, WIDTH), "places": (2 * LENGTH, WIDTH)}
    shapes |= dict.fromkeys(("query", "key", "value", "mix"), (WIDTH, WIDTH))
    shapes |= {"up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH), "head": (WIDTH, SYMBOLS)}
    make, keys = jax.nn.initializers.he_normal(), jax.random.split(key, len(shapes))
    return {name: make(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}


def normalize(x):
    return x / jnp.sqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


# Functional SAM needs the loss as two functions. The first returns the logits of the next symbols.
@jax.jit
def outputs_fn(params, text):
    read = text[:, :-1]
    x = params["symbols"][read] + params["places"][: read.shape[1]]
    y = normalize(x)
    scores = (y @ params["query"]) @ (y @ params["key"]).swapaxes(1, 2) / np.sqrt(WIDTH)
    past = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(past, scores, -jnp.inf))
    x += weights @ (y @ params["value"]) @ params["mix"]
    x += jax.nn.relu(normalize(x) @ params["up"]) @ params["down"]
    return normalize(x) @ params["head"]


# The second returns their loss. The first half of a text is random, so only the second half counts.
def loss_fn(logits, text):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:])
    return losses[:, LENGTH - 1 :].mean()


value_and_grad = arsam_jax.functional.value_and_grad(outputs_fn, loss_fn)

# A quarter of the steps take a second gradient: the Jacobian of the logits at the perturbed
# parameters, times the gradient of the loss with respect to the logits at the parameters.
tx = optax.chain(
    arsam_jax.budgeted_sam(rho=0.05, share=1 / 4),
    optax.adamw(optax.cosine_decay_schedule(3e-3, STEPS)),
)


@jax.jit
def train_step(params, opt_state, text):
    _, grads, grad_fn = value_and_grad(params, text)
    updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)
    return optax.apply_updates(params, updates), opt_state


def main():
    rng = np.random.default_rng(0)
    texts = np.tile(rng.integers(SYMBOLS, size=(4096 + 512, LENGTH)), 2)
    texts, test_texts = texts[:4096], texts[4096:]
    params = init(jax.random.key(0))
    opt_state = tx.init(params)
    _, grads, grad_fn = value_and_grad(params, texts[:BATCH_SIZE])
    arsam_jax.check_wiring(tx, grads, params, grad_fn=grad_fn)
    for _ in range(STEPS):
        rows = rng.choice(len(texts), BATCH_SIZE, replace=False)
        params, opt_state = train_step(params, opt_state, texts[rows])
    predicted = outputs_fn(params, test_texts).argmax(-1)[:, LENGTH - 1 :]
    accuracy = np.mean(predicted == test_texts[:, LENGTH:])
    sampled = arsam_jax.metrics_dict(opt_state)["sampled_share"]
    print(f"{STEPS} steps, %SAM {100 * sampled:.1f}, test accuracy {100 * accuracy:.1f} %")


if __name__ == "__main__":
    main()
