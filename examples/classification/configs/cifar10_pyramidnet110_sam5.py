"""CIFAR-10, PyramidNet-110, SAM-5: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar10_pyramidnet110_sam5
"""

from examples.classification.configs import paper

config = paper.cifar10("pyramidnet110", "sam_every_k")
published = {
    "sam_every_k": paper.Published(
        accuracy=97.57, std=0.05, percent_sam=20, images_per_second=447, speed_up=1.59
    )
}
