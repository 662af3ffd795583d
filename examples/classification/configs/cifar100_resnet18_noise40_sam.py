"""CIFAR-100 with 40 % wrong labels, ResNet-18, SAM: table 5 of arXiv 2510.03763.

python -m examples.classification --config cifar100_resnet18_noise40_sam
"""

from examples.classification.configs import paper

config = paper.cifar100("resnet18", "sam", label_noise=0.4)
published = {"sam": paper.Published(accuracy=55.06, images_per_second=1848, speed_up=1)}
