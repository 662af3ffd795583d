"""CIFAR-10 with 80 % wrong labels, ResNet-18, SGD: table 5 of arXiv 2510.03763.

python -m examples.classification --config cifar10_resnet18_noise80_sgd
"""

from examples.classification.configs import paper

config = paper.cifar10("resnet18", "sgd", label_noise=0.8, alpha=0.3)
published = {"sgd": paper.Published(accuracy=28.91, images_per_second=2646, speed_up=1.42)}
