"""CIFAR-10, ResNet-18, SAM: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar10_resnet18_sam
"""

from examples.classification.configs import paper

config = paper.cifar10("resnet18", "sam")
published = {
    "sam": paper.Published(
        accuracy=96.79, std=0.03, percent_sam=100, images_per_second=1855, speed_up=1
    )
}
