"""SimCC (arXiv 2107.03332): the targets and the loss of the logits of x and y, and decoding."""

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
    """Return targets (batch, 16, 2, 2 · size) over the bins of x and y, and weights (batch, 16).

    - ``gaussian``, "sa-simdr" in the authors' code: exp(−(k − 2x)² / 2σ²) / σ√2π at bin k, with
      σ = 6, cut off at the border of the image. The weight is 0 for joints more than 3 σ outside,
      where the authors measure σ in pixels.
    - ``onehot``, "simdr": 0.8 at bin round(2x), and 0.2 spread over the other bins. The weight is 0
      where that bin is outside the image.

    Args:
      kind: One of ``TARGETS``.
      joints: x and y in pixels of the image, (batch, 16, 2).
      visible: 1 for joints that count, else 0, (batch, 16).
      size: Pixels along a side of the image.
    """
    num_bins = BINS_PER_PIXEL * size
    bins, places = jnp.arange(num_bins), BINS_PER_PIXEL * joints[..., None]
    if kind == "gaussian":
        targets = jnp.exp(-jnp.square((bins - places) / SIGMA) / 2) / (SIGMA * np.sqrt(2 * np.pi))
        is_near = (joints > -_MARGIN - 2) & (joints < size + _MARGIN)  # Rounded as by the authors.
    else:
        places = jnp.round(places)
        targets = jnp.where(bins == places, 1 - SMOOTHING, SMOOTHING / (num_bins - 1))
        is_near = ((places >= 0) & (places < num_bins))[..., 0]
    return targets, visible * is_near.all(-1)


def losses(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Return KL(target ‖ prediction), the mean over bins and joints of x plus y, (batch,).

    Each joint is multiplied by its weight. The mean is over all 16 joints, even of weight 0.
    """
    divergence = optax.losses.kl_divergence(jax.nn.log_softmax(logits), targets)
    return (divergence.sum(-1) * weights).mean(-1) / logits.shape[-1]


def positions(logits: jax.Array, mirrored_logits: jax.Array, kind: str) -> jax.Array:
    """Return x and y of the joints in pixels, (batch, 16, 2), from images and mirror images.

    The logits of x of a mirror image are reversed and its joints exchanged. Mirroring moves pixel p
    to size − 1 − p, whose bin, reversed, is 2p + 1, so x is moved down by one bin. The logits
    (gaussian) or the softmaxes (onehot) are then averaged, and the bin with the maximum is taken.

    Args:
      logits: Logits of the images, (batch, 16, 2, bins).
      mirrored_logits: Logits of the mirror images.
      kind: The kind of targets that the network was trained on.
    """
    back = mirrored_logits[:, MIRRORED]
    x = back[:, :, 0, ::-1]
    x = jnp.concatenate([x[..., 1:], x[..., -1:]], axis=-1)
    back = jnp.stack([x, back[:, :, 1]], axis=2)
    if kind == "onehot":
        logits, back = jax.nn.softmax(logits), jax.nn.softmax(back)
    return (logits + back).argmax(-1) / BINS_PER_PIXEL
