"""CIFAR-10 with 60 % wrong labels, ResNet-18, SGD: table 5 of arXiv 2510.03763.

python -m examples.classification --config cifar10_resnet18_noise60_sgd
"""

from examples.classification.configs import paper

config = paper.cifar10("resnet18", "sgd", label_noise=0.6, alpha=0.3)
published = {"sgd": paper.Published(accuracy=48.5, images_per_second=2575, speed_up=1.39)}
