"""CIFAR-100, WideResNet-28-10, ARSAM with α = 0.5: table 1 of arXiv 2510.03763.

python -m examples.classification --config cifar100_wrn28_10_arsam_alpha_0_5
"""

from examples.classification.configs import paper

config = paper.cifar100("wrn28_10", "arsam", alpha=0.5)
published = {
    "arsam": paper.Published(accuracy=84.65, percent_sam=40.4, images_per_second=482, speed_up=1.37)
}
