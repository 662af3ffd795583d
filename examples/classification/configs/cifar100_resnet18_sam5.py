"""CIFAR-100, ResNet-18, SAM-5: table 3 of arXiv 2510.03763.
The table prints 10 %SAM, surely for the 20 of its other rows.

python -m examples.classification --config cifar100_resnet18_sam5
"""

from examples.classification.configs import paper

config = paper.cifar100("resnet18", "sam_every_k")
published = {
    "sam_every_k": paper.Published(
        accuracy=80.59, std=0.18, percent_sam=20, images_per_second=2715, speed_up=1.46
    )
}
