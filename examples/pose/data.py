"""People in images: MPII's from its files, and the crops of any that a network sees."""

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
from examples.pose.evaluation import HEAD_SIZE
from examples.pose.joints import HEAD, MIRRORED, NECK, NUM_JOINTS

UNIT = 200  # pixels of a scale of 1
_SCALE, _ROTATION, _MOST_ROTATION, _ROTATED = 0.25, 30, 60, 0.6
_THREADS = ThreadPoolExecutor()  # Pillow reads and warps without Python's lock


@dataclasses.dataclass(frozen=True)
class People:
    """People, each in an image. Pixels are counted from 0.

    Attributes:
      open_image: gives the image of a person.
      centers: of the crops, (n, 2).
      scales: sides of the crops in units of 200 pixels, (n,).
      joints: x and y, (n, 16, 2).
      visible: whether a joint is known, (n, 16).
      head_sizes: what errors are measured by, (n,).
    """

    open_image: Callable[[int], Image.Image]
    centers: np.ndarray
    scales: np.ndarray
    joints: np.ndarray
    visible: np.ndarray
    head_sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.scales)


class Crops(NamedTuple):
    """What a network sees of people: images (n, size, size, 3), uint8; joints (n, 16, 2), float32.

    ``visible`` (n, 16), float32; ``index`` (n,), int32, says who they are.
    """

    images: Any
    joints: Any
    visible: Any
    index: Any


def crop(
    people: People, index: np.ndarray, size: int, rng: np.random.Generator | None = None
) -> Crops:
    """Squares of ``size`` pixels around people, the same for the same ``rng``.

    With an ``rng`` the square is a random one, as in HRNet's and SimCC's code: its side times
    N(1, 0.25²) within 0.75 and 1.25; turned, six times of ten, by N(0, 30°) within ±60°; and every
    second time mirrored, so that right joints are left ones.
    """
    matrices, is_mirrored = crop_matrices(people, index, size, rng)
    joints = transform(matrices, people.joints[index])
    visible = people.visible[index]
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
    """From pixels of the image to those of the crop, (n, 2, 3), and which crops are mirrored, (n,).

    A center goes to size / 2, as in the authors' code, half a pixel beside the middle.
    """
    count = len(index)
    scales, angles, is_mirrored = np.ones(count), np.zeros(count), np.zeros(count, bool)
    if rng is not None:
        scales = np.clip(1 + _SCALE * rng.standard_normal(count), 1 - _SCALE, 1 + _SCALE)
        angles = np.clip(
            _ROTATION * rng.standard_normal(count), -_MOST_ROTATION, _MOST_ROTATION
        ) * (rng.random(count) < _ROTATED)
        is_mirrored = rng.random(count) < 0.5
    factors = size / (UNIT * people.scales[index] * scales)
    cos, sin = factors * np.cos(np.radians(angles)), factors * np.sin(np.radians(angles))
    mirror = np.where(is_mirrored, -1, 1)
    linear = np.stack([mirror * cos, sin, -mirror * sin, cos], -1).reshape(-1, 2, 2)
    moved = size / 2 - np.einsum("nij,nj->ni", linear, people.centers[index])
    return np.concatenate([linear, moved[..., None]], axis=-1), is_mirrored


def transform(matrices: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (n, k, 2) by affine matrices (n, 2, 3)."""
    return np.einsum("nij,nkj->nki", matrices[..., :2], points) + matrices[:, None, :, 2]


def inverted(matrices: np.ndarray) -> np.ndarray:
    """The affine matrices (n, 2, 3) of the way back."""
    linear = np.linalg.inv(matrices[..., :2])
    moved = -np.einsum("nij,nj->ni", linear, matrices[..., 2])
    return np.concatenate([linear, moved[..., None]], axis=-1)


def warp(image: Image.Image, matrix: np.ndarray, size: int) -> np.ndarray:
    """The image (size, size, 3) whose pixel M p is the image's pixel p, bilinear, black beside it.

    A pixel's place is that of its middle; Pillow counts from the corner, so half a pixel is added.
    """
    back = inverted(matrix[None])[0]
    back[:, 2] += 0.5 - back[:, :2].sum(1) / 2
    resampling = Image.Resampling.BILINEAR
    warped = image.transform(
        (size, size), Image.Transform.AFFINE, back.ravel().tolist(), resampling
    )
    return np.asarray(warped)


def mpii(folder: Path, *, validation: bool) -> tuple[People, People]:
    """MPII Human Pose's people for training and for testing, 22,246 and 2,958.

    From ``annot/train.json``, ``annot/valid.json`` and ``annot/gt_valid.mat``, as HRNet's authors
    published them, and ``images/``. Their pixels are counted from 1. The crops are theirs: centers
    15 scales lower, and scales times 1.25, not to cut off feet.

    Args:
      validation: tests on the people of every tenth training image, who then do not train. Their
        head boxes are not in these files: their head size is the distance of upper neck and head
        top, of which 0.6 of the diagonal is an estimate.

    Raises:
      DataError: for what is missing or damaged.
    """
    train, names = _read_people(folder, "train")
    if not validation:
        return train, _with_ground_truth(_read_people(folder, "valid")[0], folder)
    is_held_out = np.isin(names, np.unique(names)[::10])
    held_out = _chosen(train, np.flatnonzero(is_held_out))
    lengths = np.linalg.norm(held_out.joints[:, HEAD] - held_out.joints[:, NECK], axis=-1)
    has_head = held_out.visible[:, [HEAD, NECK]].all(1) & (lengths > 0)
    held_out = dataclasses.replace(held_out, head_sizes=lengths)
    return _chosen(train, np.flatnonzero(~is_held_out)), _chosen(held_out, np.flatnonzero(has_head))


def _read_people(folder: Path, split: str) -> tuple[People, np.ndarray]:
    """The people of a split, without head sizes, and the names of their images."""
    file = folder / "annot" / f"{split}.json"
    try:
        rows = json.loads(file.read_text())
        names = np.array([row["image"] for row in rows])
        centers, scales, joints, visible = (
            np.array([row[key] for row in rows], np.float64).reshape(-1, *shape)
            for key, shape in (
                ("center", (2,)),
                ("scale", ()),
                ("joints", (NUM_JOINTS, 2)),
                ("joints_vis", (NUM_JOINTS,)),
            )
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{file} does not hold MPII's annotations: {error!r}. --data is a folder with annot/"
            " (train.json, valid.json, gt_valid.mat: see HRNet's repository) and images/."
        ) from error
    missing = [name for name in np.unique(names) if not (folder / "images" / name).exists()]
    if missing or not len(names):
        raise DataError(
            f"{file} names {len(np.unique(names))} images, of which {len(missing)} are missing in"
            f" {folder / 'images'}, such as {', '.join(missing[:3])}."
        )

    def open_image(person: int) -> Image.Image:
        return read_image(folder / "images" / names[person])

    centers[:, 1] += 15 * scales
    people = People(
        open_image, centers - 1, 1.25 * scales, joints - 1, visible > 0, np.full(len(names), np.nan)
    )
    return people, names


def _with_ground_truth(people: People, folder: Path) -> People:
    """Test people with what MPII's evaluation goes by: joints, and the diagonals of head boxes."""
    file = folder / "annot" / "gt_valid.mat"
    try:
        truth = scipy.io.loadmat(file)
        boxes, missing, joints = (
            truth[key].astype(np.float64) for key in ("headboxes_src", "jnt_missing", "pos_gt_src")
        )
        count = len(people)
        shapes = (2, 2, count), (NUM_JOINTS, count), (NUM_JOINTS, 2, count)
        if (boxes.shape, missing.shape, joints.shape) != shapes:
            raise ValueError(f"not the {count} people of valid.json, but {joints.shape}")
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise DataError(f"{file} does not hold MPII's ground truth: {error!r}.") from error
    return dataclasses.replace(
        people,
        joints=joints.transpose(2, 0, 1) - 1,
        visible=missing.T == 0,
        head_sizes=HEAD_SIZE * np.linalg.norm(boxes[1] - boxes[0], axis=0),
    )


def read_image(file: Path) -> Image.Image:
    """An image file in RGB; a note on its orientation does not turn it, as the annotations expect.

    Raises:
      DataError: if it cannot be read.
    """
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise DataError(f"{file} is not a whole image: {error}. Unpack MPII again.") from error


def _chosen(people: People, index: np.ndarray) -> People:
    arrays = {
        field.name: getattr(people, field.name)[index]
        for field in dataclasses.fields(people)
        if field.name != "open_image"
    }
    return People(open_image=lambda person: people.open_image(index[person]), **arrays)
