"""CIFAR-10 with 80 % wrong labels, ResNet-18, SAM: table 5 of arXiv 2510.03763.

python -m examples.classification --config cifar10_resnet18_noise80_sam
"""

from examples.classification.configs import paper

config = paper.cifar10("resnet18", "sam", label_noise=0.8, alpha=0.3)
published = {"sam": paper.Published(accuracy=76.94, images_per_second=1863, speed_up=1)}
