"""CIFAR-10, PyramidNet-110, SAF: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar10_pyramidnet110_saf
"""

from examples.classification.configs import paper

config = paper.cifar10("pyramidnet110", "saf")
published = {"saf": paper.Published(accuracy=96.96, std=0.05, images_per_second=501, speed_up=1.78)}
