"""CIFAR-100, PyramidNet-110, SGD: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar100_pyramidnet110_sgd
"""

from examples.classification.configs import paper

config = paper.cifar100("pyramidnet110", "sgd")
published = {
    "sgd": paper.Published(
        accuracy=83.38, std=0.21, percent_sam=0, images_per_second=544, speed_up=1.96
    )
}
