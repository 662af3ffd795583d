"""CIFAR-100, ResNet-18, ARSAM-A (no reuse): table 2 of arXiv 2510.03763.

python -m examples.classification --config cifar100_resnet18_arsam_a
"""

from examples.classification.configs import paper

config = paper.cifar100("resnet18", "arsam_a")
published = {"arsam_a": paper.Published(accuracy=80.6, images_per_second=2459, speed_up=1.34)}
