"""CIFAR-10, WideResNet-28-10, SGD: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar10_wrn28_10_sgd
"""

from examples.classification.configs import paper

config = paper.cifar10("wrn28_10", "sgd")
published = {
    "sgd": paper.Published(
        accuracy=96.91, std=0.06, percent_sam=0, images_per_second=680, speed_up=1.95
    )
}
