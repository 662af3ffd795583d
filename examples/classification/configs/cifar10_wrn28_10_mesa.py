"""CIFAR-10, WideResNet-28-10, MESA: table 3 of arXiv 2510.03763.
The numbers are those of arXiv 2205.14083, as the table has them.

python -m examples.classification --config cifar10_wrn28_10_mesa
"""

from examples.classification.configs import paper

config = paper.cifar10("wrn28_10", "mesa")
published = {
    "mesa": paper.Published(accuracy=97.16, std=0.23, images_per_second=617, speed_up=1.68)
}
