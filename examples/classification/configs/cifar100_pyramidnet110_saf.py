"""CIFAR-100, PyramidNet-110, SAF: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar100_pyramidnet110_saf
"""

from examples.classification.configs import paper

config = paper.cifar100("pyramidnet110", "saf")
published = {"saf": paper.Published(accuracy=83.66, std=0.34, images_per_second=502, speed_up=1.81)}
