"""CIFAR-10, WideResNet-28-10, SAM-5: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar10_wrn28_10_sam5
"""

from examples.classification.configs import paper

config = paper.cifar10("wrn28_10", "sam_every_k")
published = {
    "sam_every_k": paper.Published(
        accuracy=97.16, std=0.03, percent_sam=20, images_per_second=553, speed_up=1.58
    )
}
