"""Tiny-ImageNet, MobileNet, SAM: table 6 of arXiv 2510.03763.

python -m examples.classification --config tiny_imagenet_mobilenet_sam
"""

from examples.classification.configs import paper

config = paper.tiny_imagenet("mobilenet", "sam", image_size=224)
published = {
    "sam": paper.Published(
        accuracy=58.49, std=0.38, percent_sam=100, images_per_second=289, speed_up=1
    )
}
