"""Tiny-ImageNet, ResNet-18, SAM: table 6 of arXiv 2510.03763.

python -m examples.classification --config tiny_imagenet_resnet18_sam
"""

from examples.classification.configs import paper

config = paper.tiny_imagenet("resnet18", "sam")
published = {
    "sam": paper.Published(
        accuracy=64.48, std=0.15, percent_sam=100, images_per_second=732, speed_up=1
    )
}
