"""CIFAR-100, PyramidNet-110, LookSAM-5: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar100_pyramidnet110_looksam
"""

from examples.classification.configs import paper

config = paper.cifar100("pyramidnet110", "looksam")
published = {
    "looksam": paper.Published(
        accuracy=83.76, std=0.45, percent_sam=20, images_per_second=350, speed_up=1.26
    )
}
