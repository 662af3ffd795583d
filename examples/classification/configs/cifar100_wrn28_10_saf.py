"""CIFAR-100, WideResNet-28-10, SAF: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar100_wrn28_10_saf
"""

from examples.classification.configs import paper

config = paper.cifar100("wrn28_10", "saf")
published = {"saf": paper.Published(accuracy=82.57, std=0.18, images_per_second=639, speed_up=1.82)}
