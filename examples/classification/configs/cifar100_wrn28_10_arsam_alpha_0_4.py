"""CIFAR-100, WideResNet-28-10, ARSAM with α = 0.4: table 1 of arXiv 2510.03763.

python -m examples.classification --config cifar100_wrn28_10_arsam_alpha_0_4
"""

from examples.classification.configs import paper

config = paper.cifar100("wrn28_10", "arsam", alpha=0.4)
published = {
    "arsam": paper.Published(accuracy=84.67, percent_sam=38.2, images_per_second=486, speed_up=1.39)
}
