"""CIFAR-10, PyramidNet-110, LookSAM-5: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar10_pyramidnet110_looksam
"""

from examples.classification.configs import paper

config = paper.cifar10("pyramidnet110", "looksam")
published = {
    "looksam": paper.Published(
        accuracy=97.22, std=0.05, percent_sam=20, images_per_second=339, speed_up=1.21
    )
}
