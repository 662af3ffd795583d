"""CIFAR-10, PyramidNet-110, MESA: table 3 of arXiv 2510.03763.
The numbers are those of arXiv 2205.14083, as the table has them.

python -m examples.classification --config cifar10_pyramidnet110_mesa
"""

from examples.classification.configs import paper

config = paper.cifar10("pyramidnet110", "mesa")
published = {
    "mesa": paper.Published(accuracy=97.46, std=0.09, images_per_second=332, speed_up=1.71)
}
