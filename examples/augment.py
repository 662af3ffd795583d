"""Augmentation of small photographs, as in the ARSAM paper's CIFAR experiments, on the device."""

import jax
import jax.numpy as jnp


def crop_mirror_and_cutout(key: jax.Array, images: jax.Array) -> jax.Array:
    """Moves images by up to an eighth, mirrors half of them, blanks a square of half the width.

    Args:
      key: one for the batch.
      images: (n, height, width, channels), normalised, so that 0 is the mean colour.
    """

    def augment(key, image):
        height, width, _ = image.shape
        crop_key, mirror_key, cutout_key = jax.random.split(key, 3)
        margin = max(1, width // 8)
        padded = jnp.pad(image, ((margin, margin), (margin, margin), (0, 0)))
        top, left = jax.random.randint(crop_key, (2,), 0, 2 * margin + 1)
        image = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
        image = jnp.where(jax.random.bernoulli(mirror_key), image[:, ::-1], image)
        row, column = jax.random.randint(cutout_key, (2,), 0, jnp.array([height, width]))
        is_cut = (abs(jnp.arange(height) - row) < width // 4)[:, None] & (
            abs(jnp.arange(width) - column) < width // 4
        )
        return jnp.where(is_cut[..., None], 0, image)

    return jax.vmap(augment)(jax.random.split(key, len(images)), images)
