"""Standard augmentation of small photographs, on the device and inside ``jit``.

An augmentation takes a key, one image and the colour outside of it, and ``augment`` maps it over a
batch. No image depends on another one, so a batch on several devices needs no communication.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

AUGMENTATIONS = ("crop", "mirror", "cutout")


def augment(names: Sequence[str], key: jax.Array, images: jax.Array, fill: ArrayLike) -> jax.Array:
    """Augments every image separately, in the order crop, mirror, cutout.

    Every image and augmentation has its own key, so what one draws does not depend on the others.

    Args:
      names: some of AUGMENTATIONS in any order; static.
      key: one key for the batch.
      images: (n, height, width, channels) float32.
      fill: (channels,) the colour outside the image and in what is cut out.
    """
    fill = jnp.asarray(fill, jnp.float32)
    functions = {"crop": crop, "mirror": mirror, "cutout": cutout}

    def augment_one(index, image):
        image_key = jax.random.fold_in(key, index)
        for place, (name, function) in enumerate(functions.items()):
            if name in names:
                image = function(jax.random.fold_in(image_key, place), image, fill)
        return image

    return jax.vmap(augment_one)(jnp.arange(len(images)), images)


def crop(key: jax.Array, image: jax.Array, fill: jax.Array) -> jax.Array:
    """Pads the image by an eighth of its width and crops it at a random place to its size."""
    height, width, channels = image.shape
    margin = max(1, width // 8)
    padded = jnp.broadcast_to(fill, (height + 2 * margin, width + 2 * margin, channels))
    padded = padded.at[margin:-margin, margin:-margin].set(image)
    row, column = jax.random.randint(key, (2,), 0, 2 * margin + 1)
    return jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)


def mirror(key: jax.Array, image: jax.Array, fill: jax.Array) -> jax.Array:
    """Exchanges left and right with probability one half."""
    del fill
    columns = jnp.arange(image.shape[1])
    return image[:, jnp.where(jax.random.bernoulli(key), columns[::-1], columns)]


def cutout(key: jax.Array, image: jax.Array, fill: jax.Array) -> jax.Array:
    """Fills a square of half the width around a random pixel of the image (arXiv 1708.04552)."""
    height, width, _ = image.shape
    row, column = jax.random.randint(key, (2,), 0, jnp.array([height, width]))

    def is_cut(size, centre):
        distance = jnp.arange(size) - centre
        return (distance >= -(width // 4)) & (distance < width // 4)

    square = is_cut(height, row)[:, None] & is_cut(width, column)[None]
    return jnp.where(square[..., None], fill[None, None], image)
