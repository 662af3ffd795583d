"""CIFAR-100, WideResNet-28-10, SAM-5: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar100_wrn28_10_sam5
"""

from examples.classification.configs import paper

config = paper.cifar100("wrn28_10", "sam_every_k")
published = {
    "sam_every_k": paper.Published(
        accuracy=83.06, std=0.08, percent_sam=20, images_per_second=549, speed_up=1.56
    )
}
