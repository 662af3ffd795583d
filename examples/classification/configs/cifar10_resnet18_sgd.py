"""CIFAR-10, ResNet-18, SGD: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar10_resnet18_sgd
"""

from examples.classification.configs import paper

config = paper.cifar10("resnet18", "sgd")
published = {
    "sgd": paper.Published(
        accuracy=96.23, std=0.11, percent_sam=0, images_per_second=3153, speed_up=1.7
    )
}
