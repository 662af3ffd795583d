"""CIFAR-100, ResNet-18, SGD: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar100_resnet18_sgd
"""

from examples.classification.configs import paper

config = paper.cifar100("resnet18", "sgd")
published = {
    "sgd": paper.Published(
        accuracy=79.84, std=0.45, percent_sam=0, images_per_second=3181, speed_up=1.71
    )
}
