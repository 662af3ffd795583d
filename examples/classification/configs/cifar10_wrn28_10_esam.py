"""CIFAR-10, WideResNet-28-10, ESAM: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar10_wrn28_10_esam
"""

from examples.classification.configs import paper

config = paper.cifar10("wrn28_10", "esam")
published = {
    "esam": paper.Published(accuracy=97.41, std=0.07, images_per_second=502, speed_up=1.44)
}
