"""CIFAR-100, WideResNet-28-10, ARSAM: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar100_wrn28_10_arsam
"""

from examples.classification.configs import paper

config = paper.cifar100("wrn28_10", "arsam")
published = {
    "arsam": paper.Published(
        accuracy=84.64, std=0.17, percent_sam=37.5, images_per_second=470, speed_up=1.34
    )
}
