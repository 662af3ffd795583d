"""CIFAR-10 with 60 % wrong labels, ResNet-18, ARSAM: table 5 of arXiv 2510.03763.

python -m examples.classification --config cifar10_resnet18_noise60_arsam
"""

from examples.classification.configs import paper

config = paper.cifar10("resnet18", "arsam", label_noise=0.6, alpha=0.3)
published = {"arsam": paper.Published(accuracy=77.67, images_per_second=2283, speed_up=1.23)}
