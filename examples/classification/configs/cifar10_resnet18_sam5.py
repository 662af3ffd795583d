"""CIFAR-10, ResNet-18, SAM-5: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar10_resnet18_sam5
"""

from examples.classification.configs import paper

config = paper.cifar10("resnet18", "sam_every_k")
published = {
    "sam_every_k": paper.Published(
        accuracy=96.42, std=0.18, percent_sam=20, images_per_second=2741, speed_up=1.48
    )
}
