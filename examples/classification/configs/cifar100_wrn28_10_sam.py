"""CIFAR-100, WideResNet-28-10, SAM: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar100_wrn28_10_sam
"""

from examples.classification.configs import paper

config = paper.cifar100("wrn28_10", "sam")
published = {
    "sam": paper.Published(
        accuracy=84.71, std=0.21, percent_sam=100, images_per_second=351, speed_up=1
    )
}
