"""CIFAR-100 with 40 % wrong labels, ResNet-18, SGD: table 5 of arXiv 2510.03763.

python -m examples.classification --config cifar100_resnet18_noise40_sgd
"""

from examples.classification.configs import paper

config = paper.cifar100("resnet18", "sgd", label_noise=0.4)
published = {"sgd": paper.Published(accuracy=48.91, images_per_second=2535, speed_up=1.37)}
