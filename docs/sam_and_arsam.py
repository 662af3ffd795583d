import jax
import jax.numpy as jnp


def norm(tree):
    return jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree)))


def sam_gradient(grad_fn, w, g, rho):
    """SAM: the gradient at w + rho g / |g| (equations 3 and 5)."""
    factor = rho / norm(g)
    return grad_fn(jax.tree.map(lambda w, g: w + factor * g, w, g))


def arsam_gradients(grad_fn, batches, w, lr, rho, alpha, is_drawn, beta=0.9, M=8):
    """ARSAM with plain SGD. Yields the parameters and whether the step was sampled."""
    s, p, r_hat, c_last, psf, age, samples = 1.0, 1 / M, 0.0, None, None, M, 0
    for step, batch in enumerate(batches):
        g = grad_fn(w, batch)
        sampled, age = is_drawn(step, p), age + 1
        if sampled:
            g_sam = sam_gradient(lambda w: grad_fn(w, batch), w, g, rho)
            psf, age, samples = jax.tree.map(jnp.subtract, g_sam, g), 0, samples + 1
            c = norm(psf) / norm(g)  # equation 9
            if c_last is not None:
                r = (c - c_last) / c_last  # equation 10
                r_hat = beta * r_hat + (1 - beta) * r  # equation 11
            c_last = c
        if age <= 2:  # a sampled step, and the two after it (equations 14 and 15)
            g = jax.tree.map(jnp.add, g, psf)
        w = jax.tree.map(lambda w, g: w - lr * g, w, g)
        if (step + 1) % M == 0:  # the end of a segment (equations 12 and 13)
            if samples:
                s = jnp.clip(s * (1 + alpha * r_hat), 1, M)
            p, samples = s / M, 0
        yield w, sampled
