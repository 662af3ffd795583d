"""CIFAR-10, ResNet-18, ARSAM: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar10_resnet18_arsam
"""

from examples.classification.configs import paper

config = paper.cifar10("resnet18", "arsam")
published = {
    "arsam": paper.Published(
        accuracy=96.63, std=0.09, percent_sam=27.7, images_per_second=2591, speed_up=1.4
    )
}
