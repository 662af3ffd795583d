"""CIFAR-100, ResNet-18, LookSAM-5: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar100_resnet18_looksam
"""

from examples.classification.configs import paper

config = paper.cifar100("resnet18", "looksam")
published = {
    "looksam": paper.Published(
        accuracy=80.48, std=0.24, percent_sam=20, images_per_second=2115, speed_up=1.13
    )
}
