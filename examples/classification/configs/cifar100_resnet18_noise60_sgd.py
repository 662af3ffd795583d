"""CIFAR-100 with 60 % wrong labels, ResNet-18, SGD: table 5 of arXiv 2510.03763.

python -m examples.classification --config cifar100_resnet18_noise60_sgd
"""

from examples.classification.configs import paper

config = paper.cifar100("resnet18", "sgd", label_noise=0.6)
published = {"sgd": paper.Published(accuracy=31.46, images_per_second=2539, speed_up=1.37)}
