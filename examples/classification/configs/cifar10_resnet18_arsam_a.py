"""CIFAR-10, ResNet-18, ARSAM-A (no reuse): table 2 of arXiv 2510.03763.

python -m examples.classification --config cifar10_resnet18_arsam_a
"""

from examples.classification.configs import paper

config = paper.cifar10("resnet18", "arsam_a")
published = {"arsam_a": paper.Published(accuracy=96.61, images_per_second=2542, speed_up=1.37)}
