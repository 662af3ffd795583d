"""CIFAR-100, PyramidNet-110, SAM: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar100_pyramidnet110_sam
"""

from examples.classification.configs import paper

config = paper.cifar100("pyramidnet110", "sam")
published = {
    "sam": paper.Published(
        accuracy=86.06, std=0.16, percent_sam=100, images_per_second=278, speed_up=1
    )
}
