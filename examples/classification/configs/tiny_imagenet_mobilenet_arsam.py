"""Tiny-ImageNet, MobileNet, ARSAM: table 6 of arXiv 2510.03763.
Its 704 images a second are not 1.22 times SAM's 289: one of the two is misprinted there.

python -m examples.classification --config tiny_imagenet_mobilenet_arsam
"""

from examples.classification.configs import paper

config = paper.tiny_imagenet("mobilenet", "arsam", image_size=224)
published = {
    "arsam": paper.Published(
        accuracy=59.29, std=0.28, percent_sam=50.2, images_per_second=704, speed_up=1.22
    )
}
