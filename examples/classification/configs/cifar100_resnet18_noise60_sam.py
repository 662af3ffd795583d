"""CIFAR-100 with 60 % wrong labels, ResNet-18, SAM: table 5 of arXiv 2510.03763.

python -m examples.classification --config cifar100_resnet18_noise60_sam
"""

from examples.classification.configs import paper

config = paper.cifar100("resnet18", "sam", label_noise=0.6)
published = {"sam": paper.Published(accuracy=35.59, images_per_second=1849, speed_up=1)}
