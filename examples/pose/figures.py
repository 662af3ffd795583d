"""Drawn figures with MPII's joints in front of photos, as a data set that needs no download."""

from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images

from examples.pose.data import UNIT, People
from examples.pose.evaluation import HEAD_SIZE
from examples.pose.joints import HEAD, LEFT, MIRRORED, NECK, NUM_JOINTS, PELVIS, RIGHT, THORAX

SIZE = 64
_FINER = 4  # Figures are drawn this many times larger and then averaged.
_STRIPS = {"train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}
_SKIN = ((255, 219, 172), (224, 172, 105), (141, 85, 36), (86, 50, 22))


def figures(part: str, count: int, *, swapped: float = 0.0) -> People:
    """Draw figures in images of 64 pixels. The same arguments give the same figures.

    A figure faces the camera or turns its back, which only its head shows, and which decides which
    side is its right. Up to two patches cover parts of the image, and covered joints count as
    visible. Background and patches are cut from scikit-learn's two sample photos, from a strip of
    each that only this part uses.

    Args:
      part: ``"train"``, ``"validation"`` or ``"test"``.
      count: The number of figures.
      swapped: The expected share of figures whose right and left joints are exchanged.
    """
    stream = list(_STRIPS).index(part)
    rng = np.random.default_rng(stream)
    photos = [_strip(photo, *_STRIPS[part]) for photo in load_sample_images().images]
    drawn = [_draw(rng, photos) for _ in range(count)]
    images, joints, head_sizes = (np.stack(values) for values in zip(*drawn, strict=True))
    is_swapped = np.random.default_rng((stream, 1)).random(count) < swapped
    joints = np.where(is_swapped[:, None, None], joints[:, MIRRORED], joints)
    return People(
        open_image=lambda person: Image.fromarray(images[person]),
        centers=np.full((count, 2), SIZE / 2),
        scales=np.full(count, SIZE / UNIT),
        joints=joints,
        visible=np.all((joints >= 0) & (joints <= SIZE - 1), axis=-1),
        head_sizes=head_sizes,
    )


def _pose(rng: np.random.Generator, side: int) -> tuple[np.ndarray, float]:
    """Draw joints (16, 2) in pixels, and the size of the body in pixels, about its height.

    Args:
      rng: The random number generator.
      side: The side of the image on which the figure's right is: -1 for left, 1 for right.
    """
    unit = rng.uniform(38, 52)
    joints = np.zeros((NUM_JOINTS, 2))

    def grow(start, end, angle, length):
        """Place a joint; ``angle`` is in degrees, from downwards to the right."""
        way = np.sin(np.radians(angle)), np.cos(np.radians(angle))
        joints[end] = joints[start] + unit * length * np.array(way)

    tilt, width = rng.normal(0, 15), rng.uniform(0.5, 1)  # Figures that turn aside are narrower.
    grow(PELVIS, THORAX, 180 + tilt, 0.28)
    grow(THORAX, NECK, 180 + tilt, 0.05)
    grow(NECK, HEAD, 180 + tilt + rng.normal(0, 12), 0.18)
    for own, sign in ((RIGHT, side), (LEFT, -side)):
        grow(PELVIS, own["hip"], tilt + 90 * sign, 0.07 * width)
        grow(THORAX, own["shoulder"], tilt + 90 * sign, 0.12 * width)
        thigh, arm = tilt / 2 + sign * rng.uniform(-15, 50), tilt + sign * rng.uniform(-20, 160)
        grow(own["hip"], own["knee"], thigh, 0.25)
        grow(own["knee"], own["ankle"], thigh - sign * rng.uniform(-10, 60), 0.25)
        grow(own["shoulder"], own["elbow"], arm, 0.17)
        grow(own["elbow"], own["wrist"], arm + sign * rng.uniform(-30, 110), 0.16)
    middle = (joints.min(0) + joints.max(0)) / 2
    return joints - middle + SIZE / 2 + rng.normal(0, 2, 2), unit


def _draw(rng: np.random.Generator, photos: list[Image.Image]) -> tuple[Any, Any, Any]:
    """Draw an image (64, 64, 3), joints (16, 2) in its pixels, and the size of the head."""
    is_front = rng.random() < 0.75
    joints, unit = _pose(rng, side=-1 if is_front else 1)
    shirt, trousers, hair = (tuple(rng.integers(0, 256, 3).tolist()) for _ in range(3))
    skin = _SKIN[rng.integers(len(_SKIN))]
    image = _cut(rng, photos, SIZE * _FINER)
    pen = ImageDraw.Draw(image)

    def scaled(points):  # Pillow counts from the corner of a pixel.
        return [tuple(point) for point in ((np.asarray(points) + 0.5) * _FINER).tolist()]

    def limb(*path, color, width):
        pen.line(scaled(joints[list(path)]), color, round(width * unit * _FINER), joint="curve")
        for x, y in scaled(joints[list(path)]):
            pen.circle((x, y), width * unit * _FINER / 2, color)

    for own in (RIGHT, LEFT):
        limb(own["hip"], own["knee"], own["ankle"], color=trousers, width=0.09)
    torso = [RIGHT["shoulder"], LEFT["shoulder"], LEFT["hip"], RIGHT["hip"], RIGHT["shoulder"]]
    pen.polygon(scaled(joints[torso]), shirt)
    limb(*torso, color=shirt, width=0.08)
    for own in (RIGHT, LEFT):
        limb(own["shoulder"], own["elbow"], color=shirt, width=0.07)
        limb(own["elbow"], own["wrist"], color=skin, width=0.055)
    limb(THORAX, NECK, color=skin, width=0.06)

    up = (joints[HEAD] - joints[NECK]) / 2
    across, middle = 0.8 * np.array([-up[1], up[0]]), joints[NECK] + up
    angles = np.linspace(0, 2 * np.pi, 40)[:, None]
    outline = middle + up * np.cos(angles) + across * np.sin(angles)
    pen.polygon(scaled(outline), skin if is_front else hair)
    if is_front:
        pen.polygon(scaled(outline[np.cos(angles[:, 0]) > 0.3]), hair)
        for eye in scaled([middle + 0.4 * across, middle - 0.4 * across]):
            pen.circle(eye, 0.018 * unit * _FINER, "black")

    for _ in range(rng.integers(3)):
        patch = _cut(rng, photos, SIZE * _FINER).resize(rng.integers(6, 18, 2) * _FINER)
        place = (joints[rng.integers(NUM_JOINTS)] + rng.normal(0, 3, 2)) * _FINER
        image.paste(patch, tuple((place - np.array(patch.size) / 2).astype(int).tolist()))
    head_size = HEAD_SIZE * np.linalg.norm(outline.max(0) - outline.min(0))
    return np.asarray(image.reduce(_FINER)), joints, head_size


def _strip(photo: np.ndarray, start: float, end: float) -> Image.Image:
    width = photo.shape[1]
    return Image.fromarray(photo[:, round(start * width) : round(end * width)])


def _cut(rng: np.random.Generator, photos: list[Image.Image], size: int) -> Image.Image:
    """Cut a random square of a random photo and resize it to ``size`` pixels."""
    photo = photos[rng.integers(len(photos))]
    side = int(rng.integers(48, min(photo.size)))
    x, y = (int(rng.integers(length - side + 1)) for length in photo.size)
    return photo.resize((size, size), box=(x, y, x + side, y + side))
