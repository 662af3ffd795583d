"""CIFAR-10, PyramidNet-110, ESAM: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar10_pyramidnet110_esam
"""

from examples.classification.configs import paper

config = paper.cifar10("pyramidnet110", "esam")
published = {
    "esam": paper.Published(accuracy=97.59, std=0.17, images_per_second=322, speed_up=1.15)
}
