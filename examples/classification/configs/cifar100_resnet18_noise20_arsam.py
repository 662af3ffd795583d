"""CIFAR-100 with 20 % wrong labels, ResNet-18, ARSAM: table 5 of arXiv 2510.03763.

python -m examples.classification --config cifar100_resnet18_noise20_arsam
"""

from examples.classification.configs import paper

config = paper.cifar100("resnet18", "arsam", label_noise=0.2, alpha=0.4)
published = {"arsam": paper.Published(accuracy=69.68, images_per_second=2237, speed_up=1.23)}
