"""Standard augmentation of small photographs, on the device, inside ``jit``.

An augmentation takes a key, one image and the colour outside it; :func:`augment` maps them over a
batch. No image depends on another one, so a batch split over devices needs no communication.

References:
  DeVries and Taylor, Improved Regularization of CNNs with Cutout, arXiv 1708.04552.
  Cubuk et al., RandAugment, arXiv 1909.13719.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

AUGMENTATIONS = ("crop", "mirror", "cutout", "randaugment")
OPERATIONS = (  # of RandAugment
    "identity",
    "autocontrast",
    "equalize",
    "rotate",
    "solarize",
    "color",
    "posterize",
    "contrast",
    "brightness",
    "sharpness",
    "shear-x",
    "shear-y",
    "translate-x",
    "translate-y",
)
MAX_MAGNITUDE = 30
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as in Pillow


def augment(names: Sequence[str], key: jax.Array, images: jax.Array, fill: ArrayLike) -> jax.Array:
    """Augments every image by itself, in the order RandAugment, crop, mirror, cutout.

    Every image and augmentation has its own key: what one draws does not depend on which others
    there are.

    Args:
      names: of AUGMENTATIONS, in any order; static. Without any the images are returned.
      key: one for the batch.
      images: (n, height, width, channels) float32 in [0, 255], of 1 or 3 channels.
      fill: (channels,) float32, the colour outside the image and in what is cut out.

    Raises:
      ValueError: a name is none of AUGMENTATIONS.
    """
    for name in names:
        if name not in AUGMENTATIONS:
            raise ValueError(f"no augmentation {name!r}: choose from {', '.join(AUGMENTATIONS)}")
    fill = jnp.asarray(fill, jnp.float32)
    in_order = {"randaugment": randaugment, "crop": crop, "mirror": mirror, "cutout": cutout}

    def augment_one(index, image):
        image_key = jax.random.fold_in(key, index)
        for name, function in in_order.items():
            if name in names:
                own_key = jax.random.fold_in(image_key, AUGMENTATIONS.index(name))
                image = function(own_key, image, fill)
        return image

    return jax.vmap(augment_one)(jnp.arange(len(images)), images)


def crop(key: jax.Array, image: jax.Array, fill: jax.Array) -> jax.Array:
    """Pads the image by an eighth of its width and crops it to its size, anywhere."""
    margin = max(1, image.shape[1] // 8)
    offset = jax.random.randint(key, (2, 1), -margin, margin + 1).astype(jnp.float32)
    return warp(image, jnp.concatenate([jnp.eye(2, dtype=jnp.float32), offset], 1), fill)


def mirror(key: jax.Array, image: jax.Array, fill: jax.Array) -> jax.Array:
    """Exchanges left and right with probability one half."""
    del fill
    columns = jnp.arange(image.shape[1])
    return image[:, jnp.where(jax.random.bernoulli(key), columns[::-1], columns)]


def cutout(key: jax.Array, image: jax.Array, fill: jax.Array) -> jax.Array:
    """Fills a square of half the width, 2 (width // 4) pixels, around any pixel of the image."""
    height, width, _ = image.shape
    row, column = jax.random.randint(key, (2,), 0, jnp.array([height, width]))

    def is_cut(size, centre):
        distance = jnp.arange(size) - centre
        return (distance >= -(width // 4)) & (distance < width // 4)

    square = is_cut(height, row)[:, None] & is_cut(width, column)[None]
    return jnp.where(square[..., None], fill[None, None], image)


def randaugment(
    key: jax.Array,
    image: jax.Array,
    fill: jax.Array,
    *,
    num_operations: int = 2,
    magnitude: float = 9,
) -> jax.Array:
    """Applies ``num_operations`` of OPERATIONS, each drawn uniformly, by :func:`apply_operation`.

    Both are static. The defaults are those of torchvision.
    """
    operation_key, sign_key = jax.random.split(key)
    operations = jax.random.randint(operation_key, (num_operations,), 0, len(OPERATIONS), jnp.int32)
    is_positive = jax.random.bernoulli(sign_key, shape=(num_operations,))
    for i in range(num_operations):
        image = apply_operation(operations[i], is_positive[i], image, fill, magnitude)
    return image


def apply_operation(
    operation: jax.Array,
    is_positive: jax.Array,
    image: jax.Array,
    fill: jax.Array,
    magnitude: float,
) -> jax.Array:
    """Applies the operation of RandAugment with this index in OPERATIONS.

    With m = magnitude / 30 and a sign ±, they are those of torchvision and, within a grey level or
    two, of Pillow:

    ======================================  ======================================================
    identity                                changes nothing
    autocontrast                            stretches every channel to [0, 255]
    equalize                                makes the histogram of every channel flat
    rotate                                  by ± 30 m degrees counter-clockwise around the centre
    solarize                                inverts the values from 255 (1 − m) on
    posterize                               keeps the 8 − round(4 m) highest bits
    color, contrast, brightness, sharpness  blend with weight 1 ± 0.9 m the image, and with the rest
                                            its grey, its mean grey, black or its smoothed image
    shear-x, shear-y                        by ± 0.3 m, the top left staying
    translate-x, translate-y                by ± 150/331 m of the width or height, whole pixels
    ======================================  ======================================================

    What changes values gives whole grey levels. Geometry takes the nearest pixel, Pillow's default
    in the references. Of a grey image, color is the identity.

    Under ``vmap`` every operation is computed for every image, so those of geometry are one warp.
    On CPU the histograms of equalize are half of the cost.

    Args:
      operation: int32 index into OPERATIONS.
      is_positive: bool, the sign of what has one.
      image: (height, width, channels) float32 in [0, 255].
      fill: (channels,) float32, the colour outside the image.
      magnitude: in [0, 30]; static.
    """
    strength = magnitude / MAX_MAGNITUDE
    factor = 1 + jnp.where(is_positive, jnp.float32(0.9 * strength), jnp.float32(-0.9 * strength))

    def extrapolate(degenerate):
        return jnp.clip(jnp.round(degenerate + factor * (image - degenerate)), 0, 255)

    height, width, channels = image.shape
    grey = image
    if channels == 3:
        grey = jnp.sum(image * jnp.array(_LUMA, jnp.float32)[None, None], -1, keepdims=True)
    matrices = jnp.asarray(_matrices(height, width, strength))
    warped = warp(image, matrices[is_positive.astype(jnp.int32), operation], fill)
    step = 2 ** round(4 * strength)
    others = {
        "autocontrast": autocontrast(image),
        "equalize": equalize(image),
        "solarize": jnp.where(image < 255 * (1 - strength), image, 255 - image),
        "color": extrapolate(grey),
        "posterize": jnp.floor(image / step) * step,
        "contrast": extrapolate(grey.mean()),
        "brightness": extrapolate(jnp.float32(0)),
        "sharpness": extrapolate(smooth(image)),
    }
    return jax.lax.select_n(operation, *(others.get(name, warped) for name in OPERATIONS))


def _matrices(height: int, width: int, strength: float) -> np.ndarray:
    """The maps of OPERATIONS for :func:`warp`: (sign, operation, 2, 3)."""
    matrices = np.tile(np.eye(2, 3, dtype=np.float32), (2, len(OPERATIONS), 1, 1))
    for of_sign, sign in zip(matrices, (-1, 1), strict=True):
        matrix = dict(zip(OPERATIONS, of_sign, strict=True))
        angle = sign * np.radians(30 * strength)
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        centre = np.array([width / 2, height / 2])
        matrix["rotate"][:, :2] = rotation
        matrix["rotate"][:, 2] = centre - rotation @ centre
        matrix["shear-x"][0, 1] = matrix["shear-y"][1, 0] = sign * 0.3 * strength
        matrix["translate-x"][0, 2] = sign * int(150 / 331 * strength * width)
        matrix["translate-y"][1, 2] = sign * int(150 / 331 * strength * height)
    return matrices


def warp(image: jax.Array, matrix: jax.Array, fill: jax.Array) -> jax.Array:
    """The affine map of the image in which pixel (x, y) is the nearest to ``matrix`` (x, y, 1).

    Coordinates are of the pixels' centres, from (1/2, 1/2) at the top left; those outside the image
    have the colour ``fill``.
    """
    height, width, channels = image.shape
    x = (jnp.arange(width, dtype=jnp.float32) + 0.5)[None]
    y = (jnp.arange(height, dtype=jnp.float32) + 0.5)[:, None]
    column, row = jnp.floor(
        matrix[:, 0, None, None] * x[None]
        + matrix[:, 1, None, None] * y[None]
        + matrix[:, 2, None, None]
    ).astype(jnp.int32)
    is_inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    pixels = image.reshape(-1, channels)[jnp.where(is_inside, row * width + column, 0)]
    return jnp.where(is_inside[..., None], pixels, fill[None, None])


def autocontrast(image: jax.Array) -> jax.Array:
    """Stretches every channel to [0, 255]; one that has a single value stays."""
    levels = jnp.round(image)
    low, high = (of(levels, (0, 1), keepdims=True) for of in (jnp.min, jnp.max))
    return jnp.where(
        high > low, jnp.round((levels - low) * (255 / jnp.maximum(high - low, 1))), image
    )


def equalize(image: jax.Array) -> jax.Array:
    """Makes the histogram of every channel flat, by Pillow's rule on whole grey levels."""

    def equalize_channel(levels):
        histogram = jnp.zeros(256, jnp.int32).at[levels].add(1)
        num_below = jnp.cumsum(histogram) - histogram
        step = jnp.max(num_below, initial=0, where=histogram > 0) // 255
        flat = jnp.minimum((num_below + step // 2) // jnp.maximum(step, 1), 255)
        return jnp.where(step > 0, flat, jnp.arange(256, dtype=jnp.int32))[levels]

    levels = jnp.round(image).astype(jnp.int32)
    flat = jax.vmap(equalize_channel, -1, -1)(levels.reshape(-1, image.shape[-1]))
    return flat.reshape(image.shape).astype(image.dtype)


def smooth(image: jax.Array) -> jax.Array:
    """Averages each pixel, counted 5 times, with its 8 neighbours; those at the edge stay."""
    rows = image[:-2] + image[1:-1] + image[2:]
    neighbours = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    inner = image[1:-1, 1:-1]
    return image.at[1:-1, 1:-1].set((neighbours + 4 * inner) / 13)
