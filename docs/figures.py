"""Draws the figures of the site's pages: `python docs/figures.py FOLDER`.

Curves of methods are runs of the library on a small problem. Figures are at most 4.8 inches wide,
so that they are legible on a phone.
"""

import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

import arsam_jax
from arsam_jax import radius, sampling

PLAIN, SAMPLED, REUSED, GREY = "#E69F00", "#0072B2", "#009E73", "#777777"
STEPS = 240
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "arsam_jax",
    "mathtext.fontset": "dejavusans",
}


def draw(folder: Path) -> None:
    """Draws every figure into a folder, as NAME.svg."""
    folder.mkdir(exist_ok=True)
    for name, make in FIGURES.items():
        with mpl.rc_context(STYLE):
            make().savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})


def loss_fn(params, key):
    """A student of 16 units and a teacher, on a batch of 16 examples with noisy labels."""
    x_key, noise_key = jax.random.split(key)
    x = jax.random.normal(x_key, (16, 8))
    y = jnp.sin(x).sum(axis=1) + jax.random.normal(noise_key, (16,))
    return jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"] - y) ** 2)


@functools.cache
def trained(make):
    """Metrics and sampling states of every step of a run with the method that ``make`` returns."""
    tx = optax.chain(make(), optax.sgd(optax.cosine_decay_schedule(0.05, STEPS), momentum=0.9))
    keys = jax.random.split(jax.random.key(0), STEPS + 2)
    params = {"in": jax.random.normal(keys[-1], (8, 16)) / 3, "out": jnp.zeros(16)}

    def step(carry, key):
        params, opt_state = carry
        grad_fn = functools.partial(jax.grad(loss_fn), key=key)
        updates, opt_state = tx.update(grad_fn(params), opt_state, params, grad_fn=grad_fn)
        state = arsam_jax.get_state(opt_state)
        return (optax.apply_updates(params, updates), opt_state), (state.metrics, state.sampling)

    return jax.jit(lambda carry: jax.lax.scan(step, carry, keys[:STEPS]))(
        (params, tx.init(params))
    )[1]


def arsam():
    return arsam_jax.arsam(rho=0.1, alpha=0.4, segment_length=8)


def radius_figure():
    lines = {
        "a number: 0.1": lambda: arsam_jax.sam(0.1),
        "a schedule: linear_schedule(0.02, 0.15, 120)": lambda: arsam_jax.sam(
            optax.linear_schedule(0.02, 0.15, 120)
        ),
        "budgeted_sam(0.1, share=1/4, total_steps=240)": lambda: arsam_jax.budgeted_sam(
            0.1, share=1 / 4, total_steps=STEPS
        ),
        "a policy: radius.hold_ratio(0.5)": lambda: arsam_jax.sam(radius.hold_ratio(0.5)),
    }
    figure = Figure(figsize=(4.8, 2.4))
    axes = figure.add_subplot()
    for color, (label, make) in zip((GREY, PLAIN, SAMPLED, REUSED), lines.items(), strict=True):
        axes.plot(np.asarray(trained(make)[0].rho), color=color, label=label, linewidth=2)
    axes.set(xlabel="step", ylabel="ρ(t)", ylim=(0, None))
    axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


CURVATURE = np.array([[0.5, 0.2], [0.2, 2.4]])
W = np.array([2.0, 0.45])
G = CURVATURE @ W
EPSILON = 0.75 * G / np.linalg.norm(G)
PSF = CURVATURE @ EPSILON
SCALE = 0.32
"""Length of an arrow in units of the gradient."""


def landscape(axes):
    x, y = np.meshgrid(np.linspace(-1.2, 3.4, 90), np.linspace(-1.2, 1.5, 90))
    points = np.stack([x, y], axis=-1)
    loss = np.einsum("...i,ij,...j->...", points, CURVATURE, points)
    axes.contour(
        x, y, loss, levels=np.linspace(0.3, 3.6, 9) ** 2 / 2, colors="#cccccc", linewidths=1
    )
    axes.set(aspect="equal", xlim=(-1.2, 3.4), ylim=(-1.2, 1.5))
    axes.axis("off")


def arrow(axes, start, vector, color, label="", offset=(6, 4), style="-"):
    end = start + vector
    properties = {"arrowstyle": "-|>", "color": color, "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", tuple(end), tuple(start), arrowprops=properties | {"linestyle": style})
    middle = (start + end) / 2
    axes.annotate(label, tuple(middle), offset, textcoords="offset points", color=color)


def probe_figure():
    figure = Figure(figsize=(4.8, 3))
    axes = figure.add_subplot()
    landscape(axes)
    arrow(axes, W, -SCALE * G, PLAIN, "−g = −∇L(w)", (-86, 2))
    arrow(axes, W, EPSILON, GREY, "ε = ρ g/‖g‖", (-72, 0))
    arrow(axes, W + EPSILON, -SCALE * (G + PSF), SAMPLED, "−$g_A$ = −∇L(w + ε)", (8, -4))
    for point, label, offset in ((W, "w", (-14, -14)), (W + EPSILON, "w + ε", (6, 4))):
        axes.plot(*point, "o", color="black", markersize=5)
        axes.annotate(label, tuple(point), offset, textcoords="offset points")
    axes.annotate("minimum", (0, 0), (0, 0), color=GREY, ha="center", va="center", fontsize=9)
    return figure


def correction_figure():
    """The gradients that a sampled, a reuse and a plain step return, each on its own mini-batch."""
    figure = Figure(figsize=(4.8, 2.6))
    other = np.array([[0.94, 0.16], [-0.2, 0.96]]) @ G
    titles = (
        "sampled step:\nreturns $g_A$",
        "reuse step:\nreturns g + PSF",
        "plain step:\nreturns g",
    )
    for i, (title, grad) in enumerate(zip(titles, (G, other, other), strict=True)):
        axes = figure.add_subplot(1, 3, i + 1)
        axes.set_title(title, fontsize=10)
        origin = np.zeros(2)
        arrow(axes, origin, grad, PLAIN, "g", (8, -8))
        if i < 2:
            label = "PSF" if i == 0 else "PSF, kept"
            arrow(axes, grad, PSF, REUSED, label, (8, 0), ("-", "--")[i])
            arrow(
                axes,
                origin,
                grad + PSF,
                SAMPLED,
                "$g_A$" if i == 0 else "g + PSF",
                (-20 - 30 * i, 6),
            )
        axes.set(aspect="equal", xlim=(-0.9, 2.3), ylim=(-0.2, 3.2))
        axes.axis("off")
    figure.tight_layout(w_pad=0)
    return figure


def sampling_figure():
    policies = {
        "always()": sampling.always,
        "every_k(8)": lambda: sampling.every_k(8),
        "budgeted(1/8)": lambda: sampling.budgeted(1 / 8),
        "bernoulli(1/8)": lambda: sampling.bernoulli(1 / 8),
        "final_phase(240, 1/8)": lambda: sampling.final_phase(STEPS, 1 / 8),
        "gradient_norm_gate(240)": lambda: sampling.gradient_norm_gate(STEPS),
        "autoregressive(0.4,\nsegment_length=8)": lambda: sampling.autoregressive(
            0.4, segment_length=8
        ),
    }
    figure = Figure(figsize=(4.8, 3.2))
    axes = figure.add_subplot()
    labels = []
    for row, (label, make) in enumerate(policies.items()):
        metrics, _ = trained(functools.partial(sampled_by, make))
        steps = np.flatnonzero(np.asarray(metrics.sampled))
        axes.vlines(steps, row - 0.32, row + 0.32, color=SAMPLED, linewidth=1.4)
        axes.text(STEPS + 6, row, f"{len(steps) / STEPS:.0%}", va="center", color=SAMPLED)
        labels.append(label)
    axes.set(xlabel="step", xlim=(-2, STEPS + 48), xticks=range(0, STEPS + 1, 60))
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.invert_yaxis()
    return figure


def sampled_by(make):
    return arsam_jax.sharpness_aware(0.1, sampling=make())


def steps_figure():
    """The kinds of the first 60 steps of a run of ARSAM, and their cost."""
    metrics, _ = trained(arsam)
    sampled = np.asarray(metrics.sampled)[:60]
    last = np.maximum.accumulate(np.where(sampled, np.arange(60), -99))
    age = np.arange(60) - last
    figure = Figure(figsize=(4.8, 1.7))
    axes = figure.add_subplot()
    kinds = (
        ("sampled, returns $g_A$", age == 0, SAMPLED),
        ("reuse, g + PSF", (age > 0) & (age <= 2), REUSED),
        ("plain, g", age > 2, PLAIN),
    )
    for label, mask, color in kinds:
        steps = np.flatnonzero(mask)
        axes.bar(steps, np.where(sampled[steps], 2, 1), 0.8, color=color, label=label)
    axes.set(xlabel="step", ylabel="gradients", yticks=[0, 1, 2], xlim=(-1, 60))
    axes.legend(
        frameon=False,
        fontsize=9,
        ncols=3,
        columnspacing=1,
        handlelength=1,
        loc="lower center",
        bbox_to_anchor=(0.45, 1),
    )
    return figure


def controller_figure():
    metrics, state = trained(arsam)
    sampled = np.flatnonzero(np.asarray(metrics.sampled))
    figure = Figure(figsize=(4.8, 3.8))
    rows = figure.subplots(3, 1, sharex=True, height_ratios=[2, 2, 1])
    rows[0].plot(sampled, np.asarray(state.ratio)[sampled], "o-", color=REUSED, markersize=3)
    rows[0].set(ylabel="c", ylim=(0, None))
    rows[1].step(np.arange(STEPS), np.asarray(state.probability), color=PLAIN, where="post")
    rows[1].set(ylabel="p", ylim=(0, 1.05))
    rows[2].vlines(sampled, 0, 1, color=SAMPLED, linewidth=1.4)
    rows[2].set(ylabel="sampled", yticks=[], xlabel="step")
    figure.align_ylabels(rows)
    return figure


LADDER = (
    ("Can you pay two\ngradients per step?", "sam(rho)", "2 gradients per step"),
    (
        "Can you pay only\none?",
        "momentum_sam(5 * rho)",
        "1 gradient per step; tune ρ separately",
    ),
    (
        "No memory for one\nmore buffer?",
        "sam_every_k(2.5 * rho, 4)",
        "1.25 gradients per step",
    ),
    (
        "Do you want the paper's\nadaptive sampling?",
        "arsam(rho)",
        "1.02 to 1.83 gradients per step, measured",
    ),
)
OTHERWISE = ("budgeted_sam(rho, share=1/4)", "1.25 gradients per step, recommended")


def decision_figure():
    figure = Figure(figsize=(4.8, 3.4))
    axes = figure.add_axes((0, 0, 1, 1))
    for row, (question, call, cost) in enumerate(LADDER):
        y = -1.25 * row
        box(axes, (0, y), 3.7, question, "#f2f2f2", GREY)
        answer(axes, y, call, cost, x=4.6)
        line = {"arrowstyle": "-|>", "color": GREY, "linewidth": 1.5}
        axes.annotate("", (4.55, y + 0.36), (3.75, y + 0.36), arrowprops=line)
        axes.annotate("yes", (4.12, y + 0.42), color=GREY, ha="center")
        axes.annotate("", (1.85, y - 0.5), (1.85, y - 0.02), arrowprops=line)
        axes.annotate("no", (1.95, y - 0.35), color=GREY)
    y = -1.25 * len(LADDER)
    answer(axes, y, *OTHERWISE, x=0)
    axes.set(xlim=(-0.1, 10), ylim=(y - 0.1, 0.85))
    axes.axis("off")
    return figure


def answer(axes, y, call, cost, x):
    box(axes, (x, y), 5.3, f"{call}\n", "#e3f0f8", SAMPLED, family="monospace", size=8.5)
    axes.annotate(cost, (x + 2.65, y + 0.19), ha="center", va="center", color="#555555", fontsize=8)


def box(axes, corner, width, text, face, edge, family="sans-serif", size=9.0):
    shape = FancyBboxPatch(
        corner,
        width,
        0.72,
        boxstyle="round,pad=0,rounding_size=0.1",
        facecolor=face,
        edgecolor=edge,
    )
    axes.add_patch(shape)
    middle = corner[0] + width / 2, corner[1] + 0.36
    axes.annotate(text, middle, ha="center", va="center", family=family, fontsize=size)


FIGURES = {
    "decision": decision_figure,
    "radius": radius_figure,
    "probe": probe_figure,
    "sampling": sampling_figure,
    "correction": correction_figure,
    "steps": steps_figure,
    "controller": controller_figure,
}

if __name__ == "__main__":
    draw(Path(sys.argv[1]))
