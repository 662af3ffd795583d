"""CIFAR-100, ResNet-18, MESA: table 3 of arXiv 2510.03763.
The numbers are those of arXiv 2205.14083, as the table has them.

python -m examples.classification --config cifar100_resnet18_mesa
"""

from examples.classification.configs import paper

config = paper.cifar100("resnet18", "mesa")
published = {
    "mesa": paper.Published(accuracy=79.79, std=0.09, images_per_second=2793, speed_up=1.65)
}
