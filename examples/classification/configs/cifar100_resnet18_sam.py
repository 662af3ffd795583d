"""CIFAR-100, ResNet-18, SAM: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar100_resnet18_sam
"""

from examples.classification.configs import paper

config = paper.cifar100("resnet18", "sam")
published = {
    "sam": paper.Published(
        accuracy=81.04, std=0.29, percent_sam=100, images_per_second=1866, speed_up=1
    )
}
