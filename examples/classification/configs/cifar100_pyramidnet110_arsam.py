"""CIFAR-100, PyramidNet-110, ARSAM: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar100_pyramidnet110_arsam
"""

from examples.classification.configs import paper

config = paper.cifar100("pyramidnet110", "arsam")
published = {
    "arsam": paper.Published(
        accuracy=85.67, std=0.06, percent_sam=34.5, images_per_second=395, speed_up=1.42
    )
}
