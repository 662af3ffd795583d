"""CIFAR-10, PyramidNet-110, SGD: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar10_pyramidnet110_sgd
"""

from examples.classification.configs import paper

config = paper.cifar10("pyramidnet110", "sgd")
published = {
    "sgd": paper.Published(
        accuracy=97.14, std=0.08, percent_sam=0, images_per_second=548, speed_up=1.95
    )
}
