"""CIFAR-100, ResNet-18, ARSAM: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar100_resnet18_arsam
"""

from examples.classification.configs import paper

config = paper.cifar100("resnet18", "arsam")
published = {
    "arsam": paper.Published(
        accuracy=80.92, std=0.01, percent_sam=23.6, images_per_second=2537, speed_up=1.36
    )
}
