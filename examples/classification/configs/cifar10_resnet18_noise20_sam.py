"""CIFAR-10 with 20 % wrong labels, ResNet-18, SAM: table 5 of arXiv 2510.03763.

python -m examples.classification --config cifar10_resnet18_noise20_sam
"""

from examples.classification.configs import paper

config = paper.cifar10("resnet18", "sam", label_noise=0.2, alpha=0.3)
published = {"sam": paper.Published(accuracy=90.44, images_per_second=1873, speed_up=1)}
