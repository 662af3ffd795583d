"""CIFAR-10, PyramidNet-110, ARSAM: table 3 of arXiv 2510.03763.

python -m examples.classification --config cifar10_pyramidnet110_arsam
"""

from examples.classification.configs import paper

config = paper.cifar10("pyramidnet110", "arsam")
published = {
    "arsam": paper.Published(
        accuracy=97.49, std=0.08, percent_sam=37.2, images_per_second=411, speed_up=1.46
    )
}
