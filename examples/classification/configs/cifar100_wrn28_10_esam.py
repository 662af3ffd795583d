"""CIFAR-100, WideResNet-28-10, ESAM: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar100_wrn28_10_esam
"""

from examples.classification.configs import paper

config = paper.cifar100("wrn28_10", "esam")
published = {
    "esam": paper.Published(accuracy=84.71, std=0.32, images_per_second=494, speed_up=1.41)
}
