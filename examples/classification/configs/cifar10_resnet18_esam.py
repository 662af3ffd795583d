"""CIFAR-10, ResNet-18, ESAM: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar10_resnet18_esam
"""

from examples.classification.configs import paper

config = paper.cifar10("resnet18", "esam")
published = {
    "esam": paper.Published(accuracy=96.58, std=0.13, images_per_second=1936, speed_up=1.04)
}
