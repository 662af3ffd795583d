"""CIFAR-10 with 80 % wrong labels, ResNet-18, ARSAM: table 5 of arXiv 2510.03763.

python -m examples.classification --config cifar10_resnet18_noise80_arsam
"""

from examples.classification.configs import paper

config = paper.cifar10("resnet18", "arsam", label_noise=0.8, alpha=0.3)
published = {"arsam": paper.Published(accuracy=77.93, images_per_second=2267, speed_up=1.22)}
