"""CIFAR-10, PyramidNet-110, SAM: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar10_pyramidnet110_sam
"""

from examples.classification.configs import paper

config = paper.cifar10("pyramidnet110", "sam")
published = {
    "sam": paper.Published(
        accuracy=97.69, std=0.09, percent_sam=100, images_per_second=281, speed_up=1
    )
}
