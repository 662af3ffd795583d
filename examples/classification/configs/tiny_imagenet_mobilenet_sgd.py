"""Tiny-ImageNet, MobileNet, SGD: table 6 of arXiv 2510.03763.

python -m examples.classification --config tiny_imagenet_mobilenet_sgd
"""

from examples.classification.configs import paper

config = paper.tiny_imagenet("mobilenet", "sgd", image_size=224)
published = {
    "sgd": paper.Published(
        accuracy=58.12, std=0.4, percent_sam=0, images_per_second=547, speed_up=1.89
    )
}
