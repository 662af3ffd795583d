"""What `registration.md` says of the measures: matched clean loss, the paired test and Holm."""

import itertools
from typing import Any

import numpy as np

MEASURES = ("rounding_4", "forgetting")
ARMS = ("sam", "functional", "preconditioned", "functional_4")
HYPOTHESES = [(arm, measure) for measure in MEASURES for arm in ARMS]
LEVEL = 0.05


def at_loss(losses: Any, values: Any, loss: float) -> float:
    """The value at a loss, between two neighbouring points of a trajectory, taken from its end."""
    losses, values = np.asarray(losses, float), np.asarray(values, float)
    for i in range(len(losses) - 2, -1, -1):
        low, high = sorted((losses[i], losses[i + 1]))
        if low <= loss <= high:
            share = 0.0 if low == high else (loss - losses[i]) / (losses[i + 1] - losses[i])
            return float(values[i] + share * (values[i + 1] - values[i]))
    return float(values[np.argmin(np.abs(losses - loss))])


def forgetting(own: dict[str, Any], other: dict[str, Any], place: int, kind: str = "") -> Any:
    """What two models forget at an equal loss on the other text, at one point of the last phase."""
    learned = [t[f"{kind}learned"][place] for t in (own, other)]
    forgotten = [t[f"{kind}forgotten"][place] for t in (own, other)]
    loss = max(map(min, learned))
    return tuple(at_loss(x, y, loss) for x, y in zip(learned, forgotten, strict=True))


def differences(runs: dict[Any, dict[str, Any]], arm: str, measure: str) -> np.ndarray:
    """Of the arm less those of AdamW, at matched clean loss, one for each seed that has both."""
    found = []
    for seed in sorted(s for name, s in runs if name == arm and ("adamw", s) in runs):
        own, other = dict(runs[arm, seed]), dict(runs["adamw", seed])
        if measure in ("forgetting", "lora_forgetting"):
            kind = measure.removesuffix("forgetting")
            pairs = [forgetting(own, other, i, kind) for i in range(len(own["loss"]))]
            own[measure], other[measure] = zip(*pairs, strict=True)
        loss = max(min(own["loss"]), min(other["loss"]))
        first, second = (at_loss(t["loss"], t[measure], loss) for t in (own, other))
        found.append(first - second)
    return np.array(found)


def sign_flip(values: np.ndarray) -> float:
    """The exact one-sided p-value that the mean is below 0, over all patterns of signs."""
    sums = np.array([*itertools.product((1, -1), repeat=len(values))]) @ np.abs(values)
    return float(np.mean(sums <= np.sum(values) + 1e-12 * np.sum(np.abs(values))))


def holm(p_values: list[float]) -> list[float]:
    """The p-values, corrected for all of them."""
    order, corrected, largest = np.argsort(p_values), [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def table(runs: dict[Any, dict[str, Any]]) -> str:
    """The hypotheses with their differences and corrected p-values, in Markdown."""
    known = [h for h in HYPOTHESES if len(differences(runs, *h)) >= 2]
    values = [differences(runs, *h) for h in known]
    corrected = holm([sign_flip(x) for x in values] + [1.0] * (len(HYPOTHESES) - len(known)))
    lines = ["| arm | measure | difference | seeds | p (Holm) | accepted |", "|---|" + "---|" * 5]
    for (arm, measure), x, p in zip(known, values, corrected, strict=False):
        error = x.std(ddof=1) / len(x) ** 0.5
        shown = f"{x.mean():+.4f} ± {error:.4f}"
        lines.append(f"| {arm} | {measure} | {shown} | {len(x)} | {p:.3g} | {p <= LEVEL} |")
    return "\n".join(lines)
