"""CIFAR-100, WideResNet-28-10, MESA: table 3 of arXiv 2510.03763.
The numbers are those of arXiv 2205.14083, as the table has them.

python -m examples.classification --config cifar100_wrn28_10_mesa
"""

from examples.classification.configs import paper

config = paper.cifar100("wrn28_10", "mesa")
published = {
    "mesa": paper.Published(accuracy=83.59, std=0.24, images_per_second=625, speed_up=1.69)
}
