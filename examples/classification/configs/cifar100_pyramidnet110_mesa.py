"""CIFAR-100, PyramidNet-110, MESA: table 3 of arXiv 2510.03763.
The numbers are those of arXiv 2205.14083, as the table has them.

python -m examples.classification --config cifar100_pyramidnet110_mesa
"""

from examples.classification.configs import paper

config = paper.cifar100("pyramidnet110", "mesa")
published = {
    "mesa": paper.Published(accuracy=84.73, std=0.14, images_per_second=339, speed_up=1.71)
}
