"""The accuracy of predicted joints, and a figure of them."""

from pathlib import Path

import numpy as np

from examples.common.pictures import write_picture
from examples.pose.joints import HEAD, LEFT, LIMBS, NUM_JOINTS, PELVIS, RIGHT, THORAX

PARTS = ("head", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
"""The columns of the papers' tables."""
_COLORS = {"right": "tab:red", "left": "tab:blue", "middle": "tab:green"}
_COLUMNS = 6
_IN_MEAN = [joint for joint in range(NUM_JOINTS) if joint not in (PELVIS, THORAX)]
HEAD_SIZE = 0.6
"""The head size, the unit of errors, as a fraction of the diagonal of the box of a head."""


def pckh(
    predicted: np.ndarray, joints: np.ndarray, visible: np.ndarray, sizes: np.ndarray
) -> dict[str, float]:
    """Return PCKh (MPII, CVPR 2014): the percentage of joints with a small error.

    An error is small if it is at most half the head size (``mean``), or at most a tenth of it
    (``mean_strict``). Both means are over all visible joints but pelvis and thorax. ``head`` to
    ``ankle`` are at half the head size, averaged over the right and the left joint. A value is NaN
    if no joint is visible.

    HRNet's code uses 0.11 in place of a tenth. SimCC's and MMPose's use 0.1, as here.

    Args:
      predicted: Predicted x and y in pixels of the image, (n, 16, 2).
      joints: True x and y, (n, 16, 2).
      visible: Which joints count, (n, 16).
      sizes: Sizes of the heads in pixels, (n,).
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
    """Draw skeletons, the predicted ones in color and the true ones in white.

    Args:
      images: Images (n, size, size, 3) in uint8.
      predicted: Predicted x and y in pixels of these images, (n, 16, 2).
      joints: True x and y, (n, 16, 2).
      visible: Which true joints are drawn, (n, 16).
      file: The PNG file to write.
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
