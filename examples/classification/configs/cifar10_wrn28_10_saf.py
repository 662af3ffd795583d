"""CIFAR-10, WideResNet-28-10, SAF: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar10_wrn28_10_saf
"""

from examples.classification.configs import paper

config = paper.cifar10("wrn28_10", "saf")
published = {"saf": paper.Published(accuracy=96.96, std=0.09, images_per_second=639, speed_up=1.83)}
