"""CIFAR-10, ResNet-18, LookSAM-5: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar10_resnet18_looksam
"""

from examples.classification.configs import paper

config = paper.cifar10("resnet18", "looksam")
published = {
    "looksam": paper.Published(
        accuracy=96.47, std=0.13, percent_sam=20, images_per_second=2134, speed_up=1.15
    )
}
