"""People in images: MPII's annotations, and the crops that a network sees."""

import dataclasses
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
from PIL import Image

from examples.common.errors import DataError
from examples.common.reading import check_size, reading
from examples.pose.evaluation import HEAD_SIZE
from examples.pose.joints import HEAD, MIRRORED, NECK, NUM_JOINTS

UNIT = 200
"""Pixels of a person of scale 1."""
_SCALE_DEVIATION, _DEGREES, _MOST_DEGREES, _ROTATED_SHARE = 0.25, 30, 60, 0.6
_THREADS = ThreadPoolExecutor()  # Pillow releases Python's lock while it reads and warps.


@dataclasses.dataclass(frozen=True)
class People:
    """People, each in an image. Pixels are counted from 0.

    Attributes:
      open_image: From the index of a person to their image.
      centers: Centers of the crops, (n, 2).
      scales: Sides of the crops in units of 200 pixels, (n,).
      joints: x and y of the joints, (n, 16, 2).
      visible: Whether the position of a joint is known, (n, 16).
      head_sizes: The unit of errors in pixels, (n,).
    """

    open_image: Callable[[int], Image.Image]
    centers: np.ndarray
    scales: np.ndarray
    joints: np.ndarray
    visible: np.ndarray
    head_sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.scales)

    def select(self, index: np.ndarray, **changes: np.ndarray) -> "People":
        """Return the people of ``index``, with some arrays replaced before they are selected."""
        arrays = {name: value for name, value in vars(self).items() if name != "open_image"}
        selected = {name: value[index] for name, value in (arrays | changes).items()}
        return People(lambda person: self.open_image(index[person]), **selected)


class Crops(NamedTuple):
    """A batch: images (n, size, size, 3) in uint8, and joints (n, 16, 2) in their pixels.

    ``visible`` (n, 16) is 1 or 0. Joints and visibility are float32. ``index`` (n,), int32, has the
    numbers of the people.
    """

    images: Any
    joints: Any
    visible: Any
    index: Any


def crop(
    people: People, index: np.ndarray, size: int, rng: np.random.Generator | None = None
) -> Crops:
    """Cut squares of ``size`` pixels around people. The same ``rng`` gives the same crops.

    With an ``rng`` the squares are random, as in the code of HRNet and SimCC. The side is
    multiplied by N(1, 0.25²), clipped to 0.75 and 1.25. With probability 0.6 the square is rotated
    by N(0, 30°), clipped to ±60°. With probability 1/2 it is mirrored, which exchanges right and
    left joints.
    """
    matrices, is_mirrored = crop_matrices(people, index, size, rng)
    joints, visible = transform(matrices, people.joints[index]), people.visible[index]
    joints = np.where(is_mirrored[:, None, None], joints[:, MIRRORED], joints)
    visible = np.where(is_mirrored[:, None], visible[:, MIRRORED], visible)
    images = _THREADS.map(lambda i, m: warp(people.open_image(i), m, size), index, matrices)
    return Crops(
        np.stack(list(images)),
        joints.astype(np.float32),
        visible.astype(np.float32),
        index.astype(np.int32),
    )


def crop_matrices(
    people: People, index: np.ndarray, size: int, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return affine matrices from images to crops, (n, 2, 3), and which crops are mirrored, (n,).

    The center of a crop is at size / 2, half a pixel beside its middle, as in the authors' code.
    """
    count = len(index)
    scales, angles, is_mirrored = np.ones(count), np.zeros(count), np.zeros(count, bool)
    if rng is not None:
        scales = 1 + _SCALE_DEVIATION * rng.standard_normal(count)
        scales = scales.clip(1 - _SCALE_DEVIATION, 1 + _SCALE_DEVIATION)
        angles = (_DEGREES * rng.standard_normal(count)).clip(-_MOST_DEGREES, _MOST_DEGREES)
        angles *= rng.random(count) < _ROTATED_SHARE
        is_mirrored = rng.random(count) < 0.5
    factors = size / (UNIT * people.scales[index] * scales)
    cos, sin = factors * np.cos(np.radians(angles)), factors * np.sin(np.radians(angles))
    mirror = np.where(is_mirrored, -1, 1)
    linear = np.stack([mirror * cos, sin, -mirror * sin, cos], -1).reshape(-1, 2, 2)
    moved = size / 2 - np.einsum("nij,nj->ni", linear, people.centers[index])
    return np.concatenate([linear, moved[..., None]], axis=-1), is_mirrored


def transform(matrices: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply affine matrices (n, 2, 3) to points (n, k, 2)."""
    return np.einsum("nij,nkj->nki", matrices[..., :2], points) + matrices[:, None, :, 2]


def inverted(matrices: np.ndarray) -> np.ndarray:
    """Return the inverse transformations of affine matrices (n, 2, 3)."""
    linear = np.linalg.inv(matrices[..., :2])
    moved = -np.einsum("nij,nj->ni", linear, matrices[..., 2])
    return np.concatenate([linear, moved[..., None]], axis=-1)


def warp(image: Image.Image, matrix: np.ndarray, size: int) -> np.ndarray:
    """Transform an image by an affine matrix: bilinear, black outside, (size, size, 3).

    Here pixel coordinates refer to the middle of a pixel. Pillow's refer to its corner, which
    explains the half pixel that is added.
    """
    back = inverted(matrix[None])[0]
    back[:, 2] += 0.5 - back[:, :2].sum(1) / 2
    coefficients, bilinear = back.ravel().tolist(), Image.Resampling.BILINEAR
    return np.asarray(image.transform((size, size), Image.Transform.AFFINE, coefficients, bilinear))


def mpii(folder: Path, *, validation: bool) -> tuple[People, People]:
    """Read MPII Human Pose: 22,246 people for training and 2,958 for testing.

    The files are ``annot/train.json``, ``annot/valid.json`` and ``annot/gt_valid.mat``, as HRNet's
    authors published them, and ``images/``. As in their code, crops are 15 scales lower and 1.25
    times larger than annotated, so that they include the feet.

    Args:
      folder: The folder that has ``annot`` and ``images``.
      validation: Test on the people of every tenth training image, who are then left out of
        training. These files lack their head boxes, so the head size is the distance from the upper
        neck to the top of the head, which 0.6 of the diagonal of the box estimates.

    Raises:
      DataError: If a file is missing or damaged.
    """
    train, names = _read_people(folder, "train")
    if not validation:
        return train, _with_ground_truth(_read_people(folder, "valid")[0], folder)
    is_held_out = np.isin(names, np.unique(names)[::10])
    lengths = np.linalg.norm(train.joints[:, HEAD] - train.joints[:, NECK], axis=-1)
    has_head = train.visible[:, [HEAD, NECK]].all(1) & (lengths > 0)
    held_out = train.select(np.flatnonzero(is_held_out & has_head), head_sizes=lengths)
    return train.select(np.flatnonzero(~is_held_out)), held_out


def _read_people(folder: Path, split: str) -> tuple[People, np.ndarray]:
    """Read the people of a split, without head sizes, and the names of their images."""
    file, images = folder / "annot" / f"{split}.json", folder / "images"
    remedy = (
        "--data is a folder with annot/ (train.json, valid.json, gt_valid.mat, see HRNet's"
        " repository) and images/."
    )
    with reading(file, "MPII's annotations", remedy):
        rows = json.loads(file.read_text())
        names = np.array([str(row["image"]) for row in rows])
        shapes = {
            "center": (2,),
            "scale": (),
            "joints": (NUM_JOINTS, 2),
            "joints_vis": (NUM_JOINTS,),
        }
        centers, scales, joints, visible = (
            np.array([row[key] for row in rows], np.float64).reshape(len(rows), *shape)
            for key, shape in shapes.items()
        )
        if not all(np.isfinite(values).all() for values in (centers, scales, joints, visible)):
            raise ValueError("a number is not finite")
        if not (scales > 0).all():
            raise ValueError("a scale is not positive")
        missing = [name for name in np.unique(names) if not (images / name).exists()]
    if missing or not len(names):
        raise DataError(
            f"{file} names {len(np.unique(names))} images, of which {len(missing)} are missing in"
            f" {images}, such as {', '.join(missing[:3])}. {remedy}"
        )
    centers[:, 1] += 15 * scales
    people = People(
        open_image=lambda person: read_image(images / names[person]),
        centers=centers - 1,  # The file counts pixels from 1.
        scales=1.25 * scales,
        joints=joints - 1,
        visible=visible > 0,
        head_sizes=np.full(len(names), np.nan),
    )
    return people, names


def _with_ground_truth(people: People, folder: Path) -> People:
    """Replace joints and head sizes by those of MPII's evaluation, from the boxes of heads."""
    file, count = folder / "annot" / "gt_valid.mat", len(people)
    shapes = {
        "headboxes_src": (2, 2, count),
        "jnt_missing": (NUM_JOINTS, count),
        "pos_gt_src": (NUM_JOINTS, 2, count),
    }
    with reading(file, "MPII's ground truth"):
        check_size(file, file.stat().st_size, 2**26)  # Its arrays have about 2 MB.
        declared = {name: shape for name, shape, _ in scipy.io.whosmat(file)}
        for name, shape in shapes.items():
            if declared[name] != shape:
                raise ValueError(
                    f"{name} has the shape {declared[name]}, but {shape} was expected for the"
                    f" {count} people of valid.json"
                )
        truth = scipy.io.loadmat(file, variable_names=list(shapes))
        boxes, missing, joints = (truth[name].astype(np.float64) for name in shapes)
        sizes = HEAD_SIZE * np.linalg.norm(boxes[1] - boxes[0], axis=0)
        joints, visible = joints.transpose(2, 0, 1) - 1, missing.T == 0
        if not np.isfinite(joints[visible]).all() or not ((sizes > 0) & (sizes < np.inf)).all():
            raise ValueError("a joint or the size of a head is not finite and positive")
    return dataclasses.replace(people, joints=joints, visible=visible, head_sizes=sizes)


def read_image(file: Path) -> Image.Image:
    """Read an image file as RGB. Its EXIF orientation is ignored, as the annotations expect.

    Raises:
      DataError: If it cannot be read.
    """
    with reading(file, "an image", "Unpack MPII again."), Image.open(file) as image:
        return image.convert("RGB")
