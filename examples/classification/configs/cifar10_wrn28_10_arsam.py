"""CIFAR-10, WideResNet-28-10, ARSAM: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar10_wrn28_10_arsam
"""

from examples.classification.configs import paper

config = paper.cifar10("wrn28_10", "arsam")
published = {
    "arsam": paper.Published(
        accuracy=97.29, std=0.08, percent_sam=42.5, images_per_second=468, speed_up=1.34
    )
}
