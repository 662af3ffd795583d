"""CIFAR-10, ResNet-18, SAF: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar10_resnet18_saf
"""

from examples.classification.configs import paper

config = paper.cifar10("resnet18", "saf")
published = {"saf": paper.Published(accuracy=96.19, std=0.1, images_per_second=2733, speed_up=1.47)}
