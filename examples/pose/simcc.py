"""SimCC (arXiv 2107.03332): what the logits of x and y are trained on, and read as."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples.pose.joints import MIRRORED
from examples.pose.network import BINS_PER_PIXEL

TARGETS = ("gaussian", "onehot")
SIGMA = 6.0  # bins
SMOOTHING = 0.2
_MARGIN = 18  # pixels


def make_targets(
    kind: str, joints: jax.Array, visible: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
    """Targets (batch, 16, 2, 2 · size) over the bins of x and y, and weights (batch, 16).

    - gaussian, "sa-simdr" in the authors' code: exp(−(k − 2x)² / 2σ²) / σ√2π at bin k, with σ = 6;
      what falls beside the image is lost. Weight 0 where no bin is within 3 σ, taken for pixels.
    - onehot, "simdr": 0.8 at bin round(2x), and 0.2 spread over all others. Weight 0 where that is
      not in the image.

    Args:
      joints: x and y in pixels of the image, (batch, 16, 2).
      visible: 1 where they count, else 0, (batch, 16).
      size: pixels along a side of the image.
    """
    num_bins = BINS_PER_PIXEL * size
    bins, places = jnp.arange(num_bins), BINS_PER_PIXEL * joints[..., None]
    if kind == "gaussian":
        targets = jnp.exp(-jnp.square((bins - places) / SIGMA) / 2) / (SIGMA * np.sqrt(2 * np.pi))
        is_near = (joints > -_MARGIN - 2) & (joints < size + _MARGIN)  # as the authors round it
    else:
        places = jnp.round(places)
        targets = jnp.where(bins == places, 1 - SMOOTHING, SMOOTHING / (num_bins - 1))
        is_near = ((places >= 0) & (places < num_bins))[..., 0]
    return targets, visible * is_near.all(-1)


def losses(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """KL(target, prediction) as the mean over bins, x plus y, the mean over joints: (batch,).

    A joint counts by its weight, and is part of the mean over 16 even with weight 0.
    """
    divergence = optax.losses.kl_divergence(jax.nn.log_softmax(logits), targets)
    return (divergence.sum(-1) * weights).mean(-1) / logits.shape[-1]


def positions(logits: jax.Array, mirrored_logits: jax.Array, kind: str) -> jax.Array:
    """Where the joints are: x and y in pixels, (batch, 16, 2), of an image and its mirror image.

    The mirror's x is reversed, and its joints swapped. Pixel p becomes size − 1 − p, whose bin,
    reversed, is 2p + 1: so x moves one bin down. Then logits (gaussian) or softmaxes (onehot) are
    averaged, and the greatest counts.

    Args:
      logits: (batch, 16, 2, bins).
      mirrored_logits: of the images that are mirrored.
      kind: of the targets they were trained on.
    """
    back = mirrored_logits[:, MIRRORED]
    x = back[:, :, 0, ::-1]
    x = jnp.concatenate([x[..., 1:], x[..., -1:]], axis=-1)
    back = jnp.stack([x, back[:, :, 1]], axis=2)
    if kind == "onehot":
        logits, back = jax.nn.softmax(logits), jax.nn.softmax(back)
    return (logits + back).argmax(-1) / BINS_PER_PIXEL
