"""CIFAR-100, WideResNet-28-10, LookSAM-5: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar100_wrn28_10_looksam
"""

from examples.classification.configs import paper

config = paper.cifar100("wrn28_10", "looksam")
published = {
    "looksam": paper.Published(
        accuracy=83.52, std=0.09, percent_sam=20, images_per_second=552, speed_up=1.57
    )
}
