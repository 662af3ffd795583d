"""CIFAR-10, WideResNet-28-10, SAM: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar10_wrn28_10_sam
"""

from examples.classification.configs import paper

config = paper.cifar10("wrn28_10", "sam")
published = {
    "sam": paper.Published(
        accuracy=97.44, std=0.04, percent_sam=100, images_per_second=349, speed_up=1
    )
}
