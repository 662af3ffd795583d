"""How right predicted joints are, and a picture of them."""

from pathlib import Path

import numpy as np

from examples.common.pictures import write_picture
from examples.pose.joints import HEAD, LEFT, LIMBS, NUM_JOINTS, PELVIS, RIGHT, THORAX

PARTS = ("head", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
"""What the papers' tables have a column for."""
_COLORS = {"right": "tab:red", "left": "tab:blue", "middle": "tab:green"}
_COLUMNS = 6
_IN_MEAN = [joint for joint in range(NUM_JOINTS) if joint not in (PELVIS, THORAX)]
HEAD_SIZE = 0.6
"""Of the diagonal of a head's box: what errors are measured by."""


def pckh(
    predicted: np.ndarray, joints: np.ndarray, visible: np.ndarray, sizes: np.ndarray
) -> dict[str, float]:
    """PCKh, percent: joints within a share of the head size of where they are (MPII, CVPR 2014).

    ``mean`` is at half the head size, ``mean_strict`` at a tenth. Both are over all visible joints
    without pelvis and thorax: the means of the joints' own shares, weighted by how often each is
    visible. ``head`` to ``ankle`` are at half; of a right and a left joint the mean of their
    shares. NaN where none is visible.

    A tenth is entry 10 of the thresholds 0, 0.01, ..., 0.5. HRNet's code takes entry 11, which is
    0.11; SimCC's and MMPose's take 10.

    Args:
      predicted, joints: x and y in pixels of the image, (n, 16, 2).
      visible: (n, 16).
      sizes: of the heads, in pixels, (n,).
    """
    errors = np.linalg.norm(predicted - joints, axis=-1) / sizes[:, None]
    visible = visible.astype(bool)

    def percent(threshold, joints):
        counts = visible[:, joints].sum()
        return 100 * (errors <= threshold)[:, joints][visible[:, joints]].sum() / counts

    with np.errstate(invalid="ignore"):
        parts = {"head": percent(0.5, [HEAD])} | {
            name: (percent(0.5, [RIGHT[name]]) + percent(0.5, [LEFT[name]])) / 2
            for name in PARTS[1:]
        }
        means = {"mean": percent(0.5, _IN_MEAN), "mean_strict": percent(0.1, _IN_MEAN)}
    return {name: float(value) for name, value in (means | parts).items()}


def draw(
    images: np.ndarray, predicted: np.ndarray, joints: np.ndarray, visible: np.ndarray, file: Path
) -> None:
    """A picture of skeletons: what is predicted in colour, what is true in white.

    Args:
      images: (n, size, size, 3), in uint8.
      predicted, joints: x and y in their pixels, (n, 16, 2).
      visible: limbs with a joint that is not are left out of the true skeletons, (n, 16).
    """
    from matplotlib.figure import Figure

    rows = -(-len(images) // _COLUMNS)
    figure = Figure(figsize=(2 * _COLUMNS, 2 * rows), layout="constrained")
    for place, image in enumerate(images):
        axes = figure.add_subplot(rows, _COLUMNS, place + 1)
        axes.imshow(image)
        axes.set_axis_off()
        for side, limbs in LIMBS.items():
            for limb in np.array(limbs):
                if visible[place, limb].all():
                    axes.plot(*joints[place, limb].T, color="white", linewidth=2.5)
                axes.plot(*predicted[place, limb].T, color=_COLORS[side], linewidth=1.2)
        axes.set_xlim(-0.5, image.shape[1] - 0.5)
        axes.set_ylim(image.shape[0] - 0.5, -0.5)
    write_picture(file, figure.savefig, dpi=100)
