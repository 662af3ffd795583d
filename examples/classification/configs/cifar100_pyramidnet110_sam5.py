"""CIFAR-100, PyramidNet-110, SAM-5: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar100_pyramidnet110_sam5
"""

from examples.classification.configs import paper

config = paper.cifar100("pyramidnet110", "sam_every_k")
published = {
    "sam_every_k": paper.Published(
        accuracy=84.25, std=0.05, percent_sam=20, images_per_second=457, speed_up=1.64
    )
}
