"""Measures at matched clean loss, as `registration.md` defines them, in tables and a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import table
from benchmarks.statistics import at_loss, holm, mean_and_error, sign_flip

ARMS = ("adamw", "average", "larger_rate", "short_decay", "sam", "functional", "preconditioned")
ARMS += ("functional_4", "functional_8", "functional_32", "arsam", "adamw_decay")
TESTED = ("sam", "functional", "preconditioned", "functional_4")
HYPOTHESES = [(arm, measure) for measure in ("rounding_4", "forgetting") for arm in TESTED]
LEVEL, POINTS, BITS, FINE_TUNING_RATES = 0.05, 4, (8, 4, 3), (1e-4, 3e-4, 1e-3)
COMPARED = (*(f"rounding_{bits}" for bits in BITS), "forgetting", "lora_forgetting", "sharpness")
AT_END = ("loss", "rounding_8", "rounding_4", "rounding_3", "forgotten_1", "learned_1", "sharpness")
AT_END += ("gradients_per_step", "seconds_per_step")
Runs = dict[tuple[str, int], dict[str, Any]]  # by arm and seed


def search_file(csv: Path) -> Path:
    return csv.with_stem(f"{csv.stem}_search")


def differences(runs: Runs, arm: str, measure: str) -> list[float]:
    """Of the arm from AdamW at matched clean loss, one for each seed that has both."""
    found = []
    for seed in sorted(seed for name, seed in runs if name == arm and ("adamw", seed) in runs):
        pair = runs[arm, seed], runs["adamw", seed]
        values = _forgetting(pair, measure) if "forgetting" in measure else _at(pair, measure)
        losses = _at(pair, "loss")
        matched = max(min(own) for own in losses)
        own, other = (at_loss(x, y, matched) for x, y in zip(losses, values, strict=True))
        found.append(own - other)
    return found


def _at(pair: Sequence[dict[str, Any]], name: str) -> list[list[float]]:
    """A measure of both runs at the quarters of the last phase."""
    return [[row[f"{name}_at_{point}"] for point in range(1, POINTS + 1)] for row in pair]


def _forgetting(pair: Sequence[dict[str, Any]], measure: str) -> np.ndarray:
    """What both forget at an equal loss on the other text, between the rates of fine-tuning."""
    kind = measure.removesuffix("forgetting")
    places = range(len(FINE_TUNING_RATES))
    learned, forgotten = (
        np.array([_at(pair, f"{kind}{name}_{place}") for place in places])
        for name in ("learned", "forgotten")
    )  # (rates, 2, points)
    matched = learned.min(axis=0).max(axis=0)
    return np.array(
        [
            [at_loss(learned[:, i, j], forgotten[:, i, j], matched[j]) for j in range(POINTS)]
            for i in range(2)
        ]
    )


def write(csv: Path) -> list[Path]:
    """Writes the tables and the figure beside the CSV file."""
    rows = table.read(csv)
    failed = {row["seed"] for row in rows if not all(np.isfinite(_at([row], "loss")[0]))}
    runs: Runs = {(row["arm"], row["seed"]): row for row in rows if row["seed"] not in failed}
    if not any(arm != "adamw" for arm, _ in runs):
        raise SystemExit(f"--csv {csv} has no finished runs to report.")
    arms = [arm for arm in ARMS if any(name == arm for name, _ in runs)]
    found = {(a, m): differences(runs, a, m) for a in arms if a != "adamw" for m in COMPARED}
    known = [key for key in HYPOTHESES if key in found]
    p_values = [sign_flip(found[key]) for key in known] + [1.0] * (len(HYPOTHESES) - len(known))
    corrected = dict(zip(known, holm(p_values), strict=False))
    compared, end = [], []
    for arm in arms:
        own = [row for (name, _), row in runs.items() if name == arm]
        cells = [arm, f"{own[0]['rate']:g}", f"{own[0]['value']:g}", f"{len(own)}"]
        for name in AT_END:
            estimate = mean_and_error([row[f"{name}_at_{POINTS}"] for row in own])
            cells.append(f"{estimate.mean:.3f}" if "step" in name else f"{estimate:.4f}")
        end.append(cells)
        if arm != "adamw":
            compared.append([arm])
            for measure in COMPARED:
                p = corrected.get((arm, measure))
                tested = "" if p is None else f" (p = {p:.2g})"
                compared[-1].append(f"{mean_and_error(found[arm, measure]):+.4f}{tested}")
    text, figure = csv.with_suffix(".md"), csv.with_suffix(".png")
    parts = [
        "# What survives fine-tuning and rounding",
        f"Model and texts: {rows[0]['size']}. `registration.md` defines arms, measures and tests."
        " All losses are in bits per byte, means over seeds with standard errors. Measured at the"
        f" commits {table.counted_commits(rows)}. Excluded seeds: {len(failed)}.",
        f"![difference of each measure from AdamW]({figure.name})",
        "Difference from AdamW at equal clean loss, paired by seed. Less is better. The registered"
        " hypotheses have a p-value, corrected by Holm's procedure:",
        table.markdown(["arm", *(name.replace("_", " ") for name in COMPARED)], compared),
        "At the end of the last phase. `forgotten_1` and `learned_1` are the rise of the loss and"
        f" the loss on the other text, by fine-tuning all weights at {FINE_TUNING_RATES[1]:g}:",
        table.markdown(["arm", "rate", "ρ or weight decay", "seeds", *AT_END], end),
    ]
    text.write_text("\n\n".join(part.rstrip() for part in parts) + "\n")
    plot(found, figure)
    return [text, figure]


def plot(found: dict[tuple[str, str], list[float]], path: Path) -> None:
    """The paired differences, a panel for each measure. Filled points were registered."""
    from matplotlib.figure import Figure

    arms = list(dict.fromkeys(arm for arm, _ in found))[::-1]
    figure = Figure(figsize=(10, 1.6 + 0.3 * len(arms)), layout="constrained")
    for axis, measure in zip(figure.subplots(1, len(COMPARED), sharey=True), COMPARED, strict=True):
        for place, arm in enumerate(arms):
            x = mean_and_error(found[arm, measure])
            fill = "#0072B2" if (arm, measure) in HYPOTHESES else "white"
            axis.errorbar(x.mean, place, None, x.error, "o", color="#0072B2", mfc=fill, capsize=2)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(measure.replace("_", " "), fontsize=9)
        axis.set_yticks(range(len(arms)), arms)
        axis.tick_params(labelsize=8)
        axis.locator_params(axis="x", nbins=3)
    label = "bits per byte more than AdamW, at equal clean loss (left is better)"
    figure.supxlabel(label, fontsize=9)
    figure.savefig(path, dpi=90)
