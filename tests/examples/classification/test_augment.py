"""Augmentation: geometry exactly, RandAugment's operations against Pillow, draws by counting."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image, ImageEnhance, ImageOps

from examples.classification.data import augment
from examples.classification.data.augment import AUGMENTATIONS, OPERATIONS

FILL = np.array([120, 110, 100], np.float32)
SIGNED = ("rotate", "color", "contrast", "brightness", "sharpness", *OPERATIONS[-4:])
apply_operation = jax.jit(augment.apply_operation, static_argnums=4)


@functools.partial(jax.jit, static_argnums=0)
def augmented(names, key, images, fill=FILL):
    return augment.augment(names, key, images, fill)


def random_images(*shape, low=30, high=200):
    return np.random.default_rng(0).integers(low, high, shape).astype(np.float32)


def of_pillow(name, image, sign, magnitude, fill):
    """The operation by Pillow, with torchvision's magnitudes."""
    m = sign * magnitude / 30
    image = Image.fromarray(image.astype(np.uint8).squeeze())
    width, height = image.size
    fill = tuple(int(v) for v in fill) if len(fill) > 1 else int(fill[0])

    def warped(*matrix):
        affine, nearest = Image.Transform.AFFINE, Image.Resampling.NEAREST
        return image.transform(image.size, affine, matrix, nearest, fillcolor=fill)

    match name:
        case "identity":
            result = image
        case "autocontrast":
            result = ImageOps.autocontrast(image)
        case "equalize":
            result = ImageOps.equalize(image)
        case "rotate":
            result = image.rotate(30 * m, fillcolor=fill)
        case "solarize":
            result = ImageOps.solarize(image, 255 * (1 - abs(m)))
        case "posterize":
            result = ImageOps.posterize(image, 8 - round(4 * abs(m)))
        case "shear-x":
            result = warped(1, 0.3 * m, 0, 0, 1, 0)
        case "shear-y":
            result = warped(1, 0, 0, 0.3 * m, 1, 0)
        case "translate-x":
            result = warped(1, 0, int(150 / 331 * m * width), 0, 1, 0)
        case "translate-y":
            result = warped(1, 0, 0, 0, 1, int(150 / 331 * m * height))
        case _:
            result = getattr(ImageEnhance, name.title())(image).enhance(1 + 0.9 * m)
    return np.asarray(result, np.float32).reshape(height, width, -1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_pillows(name, channels):
    image, fill = random_images(24, 32, channels), FILL[:channels]
    for magnitude in (9, 30):
        for sign in (-1, 1):
            if name == "color" and channels == 1:
                expected = image
            else:
                expected = of_pillow(name, image, sign, magnitude, fill)
            index = np.int32(OPERATIONS.index(name))
            got = np.asarray(apply_operation(index, sign > 0, image, fill, magnitude))
            if name in ("autocontrast", "color", "contrast", "brightness"):
                np.testing.assert_allclose(got, expected, atol=1)
            elif name == "sharpness":  # Pillow rounds the smoothed image and the result
                np.testing.assert_allclose(got, expected, atol=2)
            else:
                np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (9, 7, 3)])
def test_equalize_is_pillows_for_any_histogram(shape):
    for high in (1, 2, 5, 256):
        image = random_images(*shape, low=0, high=high)
        expected = of_pillow("equalize", image, 1, 0, FILL)
        np.testing.assert_array_equal(jax.jit(augment.equalize)(image), expected)


def test_a_uniform_image_stays_uniform():
    image = np.full((8, 8, 3), 77, np.float32)
    for name in ("sharpness", "contrast", "color"):
        blended = apply_operation(np.int32(OPERATIONS.index(name)), True, image, FILL, 9)
        assert len(np.unique(blended)) == 1
        for function in (augment.autocontrast, augment.equalize):
            np.testing.assert_array_equal(function(blended), blended)


@pytest.mark.parametrize("name", SIGNED)
def test_magnitude_0_changes_nothing(name):
    image = random_images(24, 32, 3)
    for sign in (False, True):
        got = apply_operation(np.int32(OPERATIONS.index(name)), sign, image, FILL, 0)
        np.testing.assert_array_equal(got, image)


def test_randaugment_draws_every_operation_and_sign_equally_often():
    image, count = random_images(16, 16, 3), 4000
    randaugment = functools.partial(augment.randaugment, num_operations=1, magnitude=30)
    keys = jax.random.split(jax.random.key(1), count)
    drawn = jax.jit(jax.vmap(randaugment, (0, None, None)))(keys, image, FILL)
    digests = [each.tobytes() for each in np.asarray(drawn)]
    total = 0
    for index, name in enumerate(OPERATIONS):
        for signs in ((False,), (True,)) if name in SIGNED else ((False, True),):
            outcome = apply_operation(np.int32(index), signs[0], image, FILL, 30)
            got, share = digests.count(np.asarray(outcome).tobytes()), len(signs) / 28
            assert abs(got - share * count) < 5 * (share * count) ** 0.5, name
            total += got
    assert total == count


def test_randaugment_applies_its_operations_one_after_another():
    image, magnitude = random_images(16, 16, 3), 9
    key = jax.random.key(0)
    once, twice = (
        jax.jit(functools.partial(augment.randaugment, num_operations=n))(key, image, FILL)
        for n in (0, 2)
    )
    np.testing.assert_array_equal(once, image)
    operation_key, sign_key = jax.random.split(key)
    expected = image
    for operation, sign in zip(
        jax.random.randint(operation_key, (2,), 0, len(OPERATIONS)),
        jax.random.bernoulli(sign_key, shape=(2,)),
        strict=True,
    ):
        expected = apply_operation(operation, sign, expected, FILL, magnitude)
    np.testing.assert_allclose(twice, expected, atol=1)


@pytest.mark.parametrize("shape", [(16, 28, 28, 1), (16, 5, 4, 3)])
def test_shape_dtype_and_range_are_kept(shape):
    images = random_images(*shape, low=0, high=256)
    got = augmented(AUGMENTATIONS, jax.random.key(0), images, FILL[: shape[-1]])
    assert (got.shape, got.dtype) == (shape, np.float32)
    assert (got >= 0).all()
    assert (got <= 255).all()
    assert (np.asarray(got) != images).any((1, 2, 3)).all()


def test_without_a_name_nothing_changes():
    images = random_images(4, 8, 8, 3)
    np.testing.assert_array_equal(augmented((), jax.random.key(0), images), images)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"'cutmix'.*crop, mirror, cutout, randaugment"):
        augment.augment(("crop", "cutmix"), jax.random.key(0), random_images(1, 8, 8, 3), FILL)


def test_crop_translates_by_up_to_an_eighth_and_fills():
    image, count, margin = random_images(8, 16, 3, low=0, high=256), 500, 2
    padded = np.tile(FILL, (8 + 2 * margin, 16 + 2 * margin, 1))
    padded[margin:-margin, margin:-margin] = image
    got = np.asarray(augmented(("crop",), jax.random.key(0), np.stack([image] * count)))
    digests = [each.tobytes() for each in got]
    found = [
        digests.count(padded[top : top + 8, left : left + 16].tobytes())
        for top in range(5)
        for left in range(5)
    ]
    assert sum(found) == count
    assert min(found) > 0


def test_mirror_flips_half_of_the_images():
    images = random_images(400, 8, 8, 3)
    got = np.asarray(augmented(("mirror",), jax.random.key(0), images))
    is_flipped = (got == images[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(got[~is_flipped], images[~is_flipped])
    assert 150 < is_flipped.sum() < 250


def test_cutout_fills_a_square_with_its_centre_anywhere():
    images = random_images(1000, 16, 16, 3, low=200, high=256)
    got = np.asarray(augmented(("cutout",), jax.random.key(0), images))
    is_cut = (got == FILL).all(-1)
    np.testing.assert_array_equal(got[~is_cut], images[~is_cut])
    rows, columns = is_cut.any(2), is_cut.any(1)
    np.testing.assert_array_equal(is_cut, rows[:, :, None] & columns[:, None])
    for cut in (rows, columns):
        assert set(cut.sum(1)) == {4, 5, 6, 7, 8}  # the edge of the image takes up to 4 of 8 pixels
        assert len({row.tobytes() for row in cut}) == 16


def test_the_order_is_fixed_and_what_one_draws_does_not_depend_on_the_others():
    key, images = jax.random.key(3), random_images(8, 16, 16, 3)
    expected = images
    for name in ("randaugment", "crop", "mirror", "cutout"):
        expected = augmented((name,), key, expected)
    for names in (AUGMENTATIONS, AUGMENTATIONS[::-1]):
        np.testing.assert_array_equal(augmented(names, key, images), expected)


def test_an_image_does_not_depend_on_the_others():
    key, images = jax.random.key(0), random_images(8, 16, 16, 3)
    others = np.concatenate([images[:3], 255 - images[3:]])
    got = np.asarray(augmented(AUGMENTATIONS, key, images))
    np.testing.assert_array_equal(got, augmented(AUGMENTATIONS, key, images))
    np.testing.assert_array_equal(got[:3], augmented(AUGMENTATIONS, key, others)[:3])
    np.testing.assert_array_equal(got[:3], augmented(AUGMENTATIONS, key, images[:3]))
    assert (got != augmented(AUGMENTATIONS, jax.random.key(1), images)).any((1, 2, 3)).all()


def test_seeds_are_mapped():
    keys, images = jax.random.split(jax.random.key(0), 3), random_images(8, 16, 16, 3)
    mapped = jax.vmap(augmented, (None, 0, None))(AUGMENTATIONS, keys, images)
    for key, got in zip(keys, mapped, strict=True):
        np.testing.assert_array_equal(got, augmented(AUGMENTATIONS, key, images))


def test_a_split_batch_needs_no_communication():
    key, images = jax.random.key(0), random_images(16, 16, 16, 3)
    split = NamedSharding(Mesh(np.array(jax.devices()), ("batch",)), P("batch"))
    compiled = (
        jax.jit(
            lambda key, images: augment.augment(AUGMENTATIONS, key, images, FILL),
            in_shardings=(None, split),
            out_shardings=split,
        )
        .lower(key, images)
        .compile()
    )
    for operation in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert operation not in (compiled.as_text() or "")
    got = compiled(key, jax.device_put(images, split))
    np.testing.assert_array_equal(got, augmented(AUGMENTATIONS, key, images))


@pytest.mark.usefixtures("x64")
def test_images_stay_float32_with_x64():
    images = jnp.asarray(random_images(2, 8, 8, 3))
    assert augmented(AUGMENTATIONS, jax.random.key(0), images).dtype == np.float32
