"""CIFAR-100, ResNet-18, SAF: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar100_resnet18_saf
"""

from examples.classification.configs import paper

config = paper.cifar100("resnet18", "saf")
published = {
    "saf": paper.Published(accuracy=80.03, std=0.43, images_per_second=2736, speed_up=1.47)
}
