"""Augmentation: every image separately, and the geometry by counting."""

import functools

import jax
import numpy as np

from examples.classification import augment

FILL = np.array([220, 210, 205], np.float32)
IMAGES = np.random.default_rng(0).integers(0, 200, (64, 16, 16, 3)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def augmented(names, key, images):
    return augment.augment(names, key, images, FILL)


def test_a_crop_is_the_padded_image_at_each_offset_equally_often():
    """All 25 offsets of up to 2 pixels occur, and every result is one of these crops."""
    same = np.repeat(IMAGES[:1], 500, axis=0)
    got = np.asarray(augmented(("crop",), jax.random.key(0), same))
    padded = np.full((20, 20, 3), FILL, np.float32)
    padded[2:-2, 2:-2] = IMAGES[0]
    crops = {padded[i : i + 16, j : j + 16].tobytes() for i in range(5) for j in range(5)}
    found = [image.tobytes() for image in got]
    assert set(found) == crops
    assert max(found.count(crop) for crop in crops) < 3 * 500 / 25


def test_half_of_the_images_are_mirrored():
    got = np.asarray(augmented(("mirror",), jax.random.key(0), IMAGES))
    is_mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(got, IMAGES, strict=True)]
    is_same = [np.array_equal(a, b) for a, b in zip(got, IMAGES, strict=True)]
    assert np.logical_xor(is_mirrored, is_same).all()
    assert 20 < sum(is_mirrored) < 44


def test_a_square_of_half_the_width_is_cut_out():
    got = np.asarray(augmented(("cutout",), jax.random.key(0), IMAGES))
    is_cut = (got == FILL).all(-1)
    np.testing.assert_array_equal(got[~is_cut], IMAGES[~is_cut])
    for mask in is_cut:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask.sum() == len(rows) * len(columns) <= 64  # a rectangle
        assert max(len(rows), len(columns)) <= 8
    assert is_cut.sum((1, 2)).max() == 64


def test_an_image_is_augmented_by_its_place_and_key_alone():
    names, key, other = augment.AUGMENTATIONS, jax.random.key(1), jax.random.key(2)
    whole = np.asarray(augmented(names, key, IMAGES))
    changed = np.concatenate([IMAGES[:32], 255 - IMAGES[32:]])
    got = np.asarray(augmented(names, key, changed))
    np.testing.assert_array_equal(got[:32], whole[:32])
    assert (got[32:] != whole[32:]).any()
    assert (augmented(names, other, IMAGES) != whole).any()
