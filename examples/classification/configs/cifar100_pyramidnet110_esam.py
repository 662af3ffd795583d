"""CIFAR-100, PyramidNet-110, ESAM: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar100_pyramidnet110_esam
"""

from examples.classification.configs import paper

config = paper.cifar100("pyramidnet110", "esam")
published = {
    "esam": paper.Published(accuracy=85.32, std=0.03, images_per_second=321, speed_up=1.16)
}
