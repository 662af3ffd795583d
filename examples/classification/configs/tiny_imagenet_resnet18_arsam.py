"""Tiny-ImageNet, ResNet-18, ARSAM: table 6 of arXiv 2510.03763.

python -m examples.classification --config tiny_imagenet_resnet18_arsam
"""

from examples.classification.configs import paper

config = paper.tiny_imagenet("resnet18", "arsam")
published = {
    "arsam": paper.Published(
        accuracy=64.71, std=0.1, percent_sam=61.4, images_per_second=892, speed_up=1.22
    )
}
