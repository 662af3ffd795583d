"""Tiny-ImageNet, ResNet-18, SGD: table 6 of arXiv 2510.03763.

python -m examples.classification --config tiny_imagenet_resnet18_sgd
"""

from examples.classification.configs import paper

config = paper.tiny_imagenet("resnet18", "sgd")
published = {
    "sgd": paper.Published(
        accuracy=61.88, std=0.31, percent_sam=0, images_per_second=1456, speed_up=1.99
    )
}
