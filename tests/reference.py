"""Every method in NumPy, written from its paper, for the least squares of ``tests.least_squares``.

A function takes the numbers of a method and gives ``update(step, w, batch, sampled)``, which
returns the gradient that the method returns and whether the step is to be sampled. ``sampled`` says
whether it was, for the methods that draw it. Others take what the library draws as a function.
"""

import numpy as np
import scipy.special

from tests.least_squares import (
    BATCH,
    EXAMPLES,
    draw_batch,
    draw_index,
    example_gradients,
    example_losses,
    gradient,
)


def norm(x):
    return np.linalg.norm(x)


def unit(x):
    """Of zero, zero."""
    return x / max(norm(x), 1e-300)


def perturbed(w, batch, rho):
    """SAM's gradient (Foret et al., arXiv 2010.01412, equations 2 and 3)."""
    return gradient(w + rho * unit(gradient(w, batch)), batch)


def always(emitted):
    """A method of ``(w, batch)`` alone that samples every step."""
    return lambda step, w, batch, sampled: (emitted(w, batch), True)


def sam(rho):
    """Foret et al., arXiv 2010.01412, equations 2 and 3."""
    return always(lambda w, batch: perturbed(w, batch, rho))


def sam_every_k(rho, k):
    """SAM-k of Liu et al., arXiv 2203.02714: plain steps between those of SAM."""

    def update(step, w, batch, sampled):
        is_due = step % k == 0
        return (perturbed(w, batch, rho) if is_due else gradient(w, batch)), is_due

    return update


def looksam(rho, k, alpha):
    """Liu et al., arXiv 2203.02714: the part of g_A orthogonal to g is reused."""
    orthogonal = None

    def update(step, w, batch, sampled):
        nonlocal orthogonal
        g = gradient(w, batch)
        if step % k == 0:
            g_sam = perturbed(w, batch, rho)
            orthogonal = g_sam - (g @ g_sam) / (g @ g) * g
            return g_sam, True
        return g + alpha * norm(g) * unit(orthogonal), False

    return update


def ae_sam(rho, total_steps, decay=0.9, lambda_1=-1.0, lambda_2=1.0):
    """Jiang et al., arXiv 2304.14647, equations 5 to 7."""
    mean = variance = 0.0

    def update(step, w, batch, sampled):
        nonlocal mean, variance
        g = gradient(w, batch)
        x = g @ g
        mean = decay * mean + (1 - decay) * x
        variance = decay * variance + (1 - decay) * (x - mean) ** 2
        c = step / total_steps * lambda_1 + (1 - step / total_steps) * lambda_2
        is_due = x >= mean + c * np.sqrt(variance)
        return (perturbed(w, batch, rho) if is_due else g), is_due

    return update


class ARSAM:
    """Deng and Pang, arXiv 2510.03763, algorithm 1, given what was sampled; step i is from 1 on."""

    def __init__(self, rho, alpha, beta, segment, s_0, s_min, warmup, window):
        self.rho, self.alpha, self.beta, self.M = rho, alpha, beta, segment
        self.s_min, self.warmup, self.window = s_min, warmup, window
        self.s, self.p, self.r_hat, self.c = float(s_0), s_0 / segment, 0.0, None
        self.psf, self.last, self.in_segment = None, None, 0

    def update(self, i, grad, w, sampled):
        g = grad(w)
        if sampled:
            g_sam = grad(w + self.rho * g / norm(g))  # eq. 3, 5
            self.psf = g_sam - g
            c = norm(self.psf) / norm(g)  # eq. 9
            if self.c is not None:
                r = (c - self.c) / self.c  # eq. 10
                self.r_hat = self.beta * self.r_hat + (1 - self.beta) * r  # eq. 11
            self.c, self.last = c, i
            self.in_segment += 1
            out = g_sam  # eq. 14
        elif self.last is not None and (self.window is None or i - self.last <= self.window):
            out = g + self.psf  # eq. 15
        else:
            out = g
        if i % self.M == 0:
            if i > self.warmup and self.in_segment:
                s = self.s * (1 + self.alpha * self.r_hat)  # eq. 12
                self.s = min(max(s, self.s_min), self.M)
                self.p = self.s / self.M  # eq. 13
            self.in_segment = 0
        return out


def esam(rho, gamma=1.0, mask=lambda step: 1.0):
    """Du et al., arXiv 2110.03141, sections 3.1 and 3.2: mask m / β, and what rises most."""

    def update(step, w, batch, sampled):
        point = w + rho * unit(gradient(w, batch)) * mask(step)
        rise = example_losses(point, batch) - example_losses(w, batch)
        chosen = np.argsort(-rise)[: round(gamma * BATCH)]
        return example_gradients(point, batch)[chosen].mean(0), True

    return update


def gradient_norm_penalty(rho, strength):
    """Zhao et al., arXiv 2202.03599: the gradient at the point weighs ``strength``."""
    return always(
        lambda w, batch: (1 - strength) * gradient(w, batch) + strength * perturbed(w, batch, rho)
    )


def wsam(rho, gamma):
    """Yue et al., arXiv 2305.15817, coupled: α = γ / (1 − γ)."""

    def emitted(w, batch):
        g = gradient(w, batch)
        return g + gamma / (1 - gamma) * (perturbed(w, batch, rho) - g)

    return always(emitted)


def decoupled_wsam(rho, gamma, momentum):
    """Yue et al., arXiv 2305.15817, algorithm 1: momentum sees g alone. Gives the step's update."""
    v = 0.0

    def update(w, batch, rate):
        nonlocal v
        g = gradient(w, batch)
        v = momentum * v + g
        return -rate * (v + gamma / (1 - gamma) * (perturbed(w, batch, rho) - g))

    return update


def asam(rho, eta=0.01):
    """Kwon et al., arXiv 2102.11600, equation 8 with T = |w| + η."""

    def emitted(w, batch):
        g, t = gradient(w, batch), np.abs(w) + eta
        return gradient(w + rho * t**2 * g / norm(t * g), batch)

    return always(emitted)


def gsam(rho, alpha):
    """Zhuang et al., arXiv 2203.08065, algorithm 1."""

    def emitted(w, batch):
        g, g_sam = gradient(w, batch), perturbed(w, batch, rho)
        return g_sam - alpha * (g - (g @ g_sam) / (g_sam @ g_sam) * g_sam)

    return always(emitted)


def multi_step_sam(rho, num_steps):
    """Foret et al., arXiv 2010.01412, appendix on inner steps."""

    def emitted(w, batch):
        point = w
        for _ in range(num_steps):
            point = point + rho / num_steps * unit(gradient(point, batch))
        return gradient(point, batch)

    return always(emitted)


def momentum_sam(rho, decay):
    """Becker et al., arXiv 2401.12033: against the momentum of the steps before."""
    v = np.zeros(())

    def update(step, w, batch, sampled):
        nonlocal v
        g = gradient(w - rho * unit(v), batch)
        v = decay * v + g
        return g, True

    return update


def gam(rho, grad_rho, alpha, beta, gamma):
    """Zhang et al., arXiv 2303.03108, algorithm 2."""

    def emitted(w, batch):
        g_0 = gradient(w, batch)
        g_1 = gradient(w + grad_rho * unit(g_0), batch)
        w_2 = w + rho * unit(g_1 - g_0)
        g_2 = gradient(w_2, batch)
        g_3 = gradient(w_2 + grad_rho * unit(g_2), batch)
        ahead = alpha * g_1 + (1 - alpha) * g_3
        behind = g_0 + (1 - beta) * g_2
        cosine = ahead @ behind / norm(ahead) / norm(behind)
        vertical = behind - cosine * norm(behind) * unit(ahead)
        return ahead - gamma * vertical

    return always(emitted)


def sampa(rho, rate, interpolation):
    """Xie et al., arXiv 2410.10683: x̃ and y from the gradient at the last y, a batch seen twice."""
    at_y = np.zeros(())

    def update(step, x, batch, sampled):
        nonlocal at_y
        x_tilde = x + rho * unit(at_y)
        at_y = gradient(x - rate(step) * at_y, batch)
        previous = gradient(x_tilde, draw_batch(max(step - 1, 0)))
        return (1 - interpolation) * previous + interpolation * at_y, True

    return update


def friendly_sam(rho, sigma, decay):
    """Li et al., arXiv 2403.12350, and the authors' code: along g less its moving mean."""
    mean = None

    def update(step, w, batch, sampled):
        nonlocal mean
        g = gradient(w, batch)
        direction = g if mean is None else g - sigma * mean
        mean = g if mean is None else decay * mean + (1 - decay) * g
        return gradient(w + rho * unit(direction), batch), True

    return update


def final_phase_sam(rho, total_steps, share):
    """Temperon, arXiv 2609.17575: SAM in the last part of the run."""

    def update(step, w, batch, sampled):
        is_due = step >= round((1 - share) * total_steps)
        return (perturbed(w, batch, rho) if is_due else gradient(w, batch)), is_due

    return update


def usam(rho):
    """Andriushchenko and Flammarion, arXiv 2206.06232: without normalisation."""
    return always(lambda w, batch: gradient(w + rho * gradient(w, batch), batch))


def m_sam(rho, count):
    """Foret et al., arXiv 2010.01412, section 4.1: each micro-batch has its own perturbation."""

    def emitted(w, batch):
        parts = [(batch[0][k::count], batch[1][k::count]) for k in range(count)]
        return np.mean([perturbed(w, part, rho) for part in parts], 0)

    return always(emitted)


def rw_sam(rho, inverse_temperature, direction, delta=None):
    """Luo et al., arXiv 2509.18001: weights exp(λ n_i / n̄), n_i the slope along ``direction``."""

    def update(step, w, batch, sampled):
        z = unit(direction(step))
        if delta is None:
            slopes = np.abs(example_gradients(w, batch) @ z)
        else:
            moved = example_losses(w + delta * z, batch)
            slopes = np.abs(moved - example_losses(w, batch)) / delta
        p = np.exp(inverse_temperature * slopes / slopes.mean())
        weighted = (p / p.sum()) @ example_gradients(w, batch)
        return gradient(w + rho * unit(weighted), batch), True

    return update


def largest_losses(w, batch, count):
    chosen = np.argsort(-example_losses(w, batch))[:count]
    return batch[0][chosen], batch[1][chosen]


def k_sam(rho, count):
    """Ni et al., arXiv 2210.12864: both gradients of the largest losses."""
    return always(lambda w, batch: perturbed(w, largest_losses(w, batch, count), rho))


def perturbed_and_change(w, part, rho):
    """SAM's gradient on some examples, and how much ε changes their losses."""
    point = w + rho * unit(gradient(w, part))
    change = np.abs(example_losses(point, part) - example_losses(w, part))
    return gradient(point, part), change


class AUSAM:
    """arXiv 2406.08001 and its authors' code, with half of the examples and ``noise`` for a draw.

    The columns of their table are the sum, the number and the mean of |Δloss|, all ones.
    """

    def __init__(self, rho, steps_per_epoch, rise, noise, low=0.1, high=0.5):
        self.rho, self.steps_per_epoch, self.rise, self.noise = rho, steps_per_epoch, rise, noise
        self.low, self.high = low, high
        self.table = np.ones((EXAMPLES, 3))
        self.chosen_late = set()

    def update(self, step, w, batch, sampled):
        index, epoch = draw_index(step), step // self.steps_per_epoch
        if epoch == 0:
            chosen = np.arange(BATCH)
        else:
            rising = self.high - (self.rise - epoch) / self.rise * (self.high - self.low)
            span = min(rising, self.high) - self.low
            mean = self.table[index, 2]
            scaled = (mean - mean.min()) / (mean.max() - mean.min()) * span + self.low
            chosen = np.argsort(-(np.log(scaled / scaled.sum()) + self.noise(step)))[: BATCH // 2]
            self.chosen_late |= set(chosen)
        part = batch[0][chosen], batch[1][chosen]
        emitted, change = perturbed_and_change(w, part, self.rho)
        rows = index[chosen]
        if epoch == 0:
            self.table[rows, 0] = self.table[rows, 2] = change
        else:
            self.table[rows, 0] += change
            self.table[rows, 1] += 1
            self.table[rows, 2] = self.table[rows, 0] / self.table[rows, 1]
        return emitted, True


def sparse_sam(rho, mask):
    """Mi et al., arXiv 2210.05177: ε = ρ m ⊙ g / ‖g‖, ``mask(step, w, batch)``."""

    def update(step, w, batch, sampled):
        direction = unit(gradient(w, batch)) * mask(step, w, batch)
        return gradient(w + rho * direction, batch), True

    return update


def top(scores, count):
    mask = np.zeros(len(scores), bool)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask


def fisher_mask(pattern, refresh_every, examples):
    """SSAM-F, arXiv 2210.05177, with half of the weights; ``examples(batch)`` are seen."""
    mask = None

    def masked(step, w, batch):
        nonlocal mask
        if step % refresh_every:
            return mask
        fisher = (example_gradients(w, examples(batch)) ** 2).mean(0)
        matrix = fisher[:6].reshape(3, 2)
        if pattern == "unstructured":
            mask = top(fisher, 4)
        elif pattern == "structured":  # whole leaves until the budget of 4 is reached
            order = ["a", "b"] if matrix.mean() >= fisher[6:].mean() else ["b", "a"]
            live = order[:1] if order[0] == "a" else order
            mask = np.array(["a" in live] * 6 + ["b" in live] * 2)
        else:  # the larger of every two of the matrix, all of the vector and what is left over
            is_larger = np.ones((3, 2), bool)
            if pattern == (1, 2, -1):  # row by row
                is_larger = matrix == matrix.max(1, keepdims=True)
            else:  # along the three inputs: two of them and one left over
                is_larger[:2] = matrix[:2] == matrix[:2].max(0)
            mask = np.append(is_larger, [True, True])
        return mask

    return masked


class DynamicMask:
    """SSAM-D, arXiv 2210.05177, with half of the weights; ``draws(step)`` are two random scores."""

    def __init__(self, first, total_steps, drop_rate, drop_by, grow_by, refresh_every, draws):
        self.mask, self.masks = first, [first]
        self.total_steps, self.drop_rate, self.refresh_every = total_steps, drop_rate, refresh_every
        self.drop_by, self.grow_by, self.draws = drop_by, grow_by, draws

    def __call__(self, step, w, batch):
        if step and step % self.refresh_every == 0:
            g, draws = np.abs(gradient(w, batch)), self.draws(step)
            annealed = self.drop_rate * (1 + np.cos(np.pi * step / self.total_steps)) / 2
            count = int(np.round(annealed * 4))
            drop_scores = {"weight": np.abs(w), "gradient": g, "random": draws[0]}[self.drop_by]
            grow_scores = {"gradient": g, "random": draws[1]}[self.grow_by]
            is_dropped = top(np.where(self.mask, -drop_scores, -np.inf), count)
            grown = top(np.where(self.mask, -np.inf, grow_scores), count)
            self.mask = (self.mask & ~is_dropped) | grown
            self.masks.append(self.mask)
        return self.mask


def trajectory_term(past, now, temperature):
    """SAF and MESA, Du et al., arXiv 2205.14083, equation 7: τ² KL(past ‖ now) at temperature τ."""
    p = scipy.special.softmax(past / temperature, axis=1)
    q = scipy.special.softmax(now / temperature, axis=1)
    return temperature**2 * (p * np.log(p / q)).sum(1).mean()
