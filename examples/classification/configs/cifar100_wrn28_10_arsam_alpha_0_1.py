"""CIFAR-100, WideResNet-28-10, ARSAM with α = 0.1: table 1 of arXiv 2510.03763.

python -m examples.classification --config cifar100_wrn28_10_arsam_alpha_0_1
"""

from examples.classification.configs import paper

config = paper.cifar100("wrn28_10", "arsam", alpha=0.1)
published = {
    "arsam": paper.Published(accuracy=83.07, percent_sam=7.4, images_per_second=620, speed_up=1.77)
}
