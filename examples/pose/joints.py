"""MPII's 16 joints. Right and left are those of the person, not of the image."""

import numpy as np

NUM_JOINTS = 16
RIGHT = {"ankle": 0, "knee": 1, "hip": 2, "wrist": 10, "elbow": 11, "shoulder": 12}
LEFT = {"ankle": 5, "knee": 4, "hip": 3, "wrist": 15, "elbow": 14, "shoulder": 13}
PELVIS, THORAX, NECK, HEAD = 6, 7, 8, 9

MIRRORED = np.arange(NUM_JOINTS)
"""The joint that takes the place of each joint in a mirror image."""
for _name in RIGHT:
    MIRRORED[[RIGHT[_name], LEFT[_name]]] = LEFT[_name], RIGHT[_name]

LIMBS = {
    "right": [(0, 1), (1, 2), (2, 6), (10, 11), (11, 12), (12, 7)],
    "left": [(5, 4), (4, 3), (3, 6), (15, 14), (14, 13), (13, 7)],
    "middle": [(6, 7), (7, 8), (8, 9)],
}
"""Pairs of joints that a skeleton connects."""
