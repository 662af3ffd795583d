"""CIFAR-100, WideResNet-28-10, SGD: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar100_wrn28_10_sgd
"""

from examples.classification.configs import paper

config = paper.cifar100("wrn28_10", "sgd")
published = {
    "sgd": paper.Published(
        accuracy=82.47, std=0.3, percent_sam=0, images_per_second=685, speed_up=1.95
    )
}
