"""CIFAR-10, ResNet-18, MESA: table 3 of arXiv 2510.03763.
The numbers are those of arXiv 2205.14083, as the table has them.

python -m examples.classification --config cifar10_resnet18_mesa
"""

from examples.classification.configs import paper

config = paper.cifar10("resnet18", "mesa")
published = {
    "mesa": paper.Published(accuracy=96.24, std=0.02, images_per_second=2780, speed_up=1.68)
}
