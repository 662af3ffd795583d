"""CIFAR-100, ResNet-18, ESAM: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar100_resnet18_esam
"""

from examples.classification.configs import paper

config = paper.cifar100("resnet18", "esam")
published = {
    "esam": paper.Published(accuracy=80.47, std=0.31, images_per_second=1953, speed_up=1.05)
}
