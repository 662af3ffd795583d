"""CIFAR-100 with 80 % wrong labels, ResNet-18, SGD: table 5 of arXiv 2510.03763.

python -m examples.classification --config cifar100_resnet18_noise80_sgd
"""

from examples.classification.configs import paper

config = paper.cifar100("resnet18", "sgd", label_noise=0.8)
published = {"sgd": paper.Published(accuracy=12.32, images_per_second=2533, speed_up=1.38)}
