"""CIFAR-10, WideResNet-28-10, LookSAM-5: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar10_wrn28_10_looksam
"""

from examples.classification.configs import paper

config = paper.cifar10("wrn28_10", "looksam")
published = {
    "looksam": paper.Published(
        accuracy=97.13, std=0.04, percent_sam=20, images_per_second=537, speed_up=1.54
    )
}
