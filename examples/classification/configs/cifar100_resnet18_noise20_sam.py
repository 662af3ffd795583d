"""CIFAR-100 with 20 % wrong labels, ResNet-18, SAM: table 5 of arXiv 2510.03763.

python -m examples.classification --config cifar100_resnet18_noise20_sam
"""

from examples.classification.configs import paper

config = paper.cifar100("resnet18", "sam", label_noise=0.2)
published = {"sam": paper.Published(accuracy=69.1, images_per_second=1815, speed_up=1)}
