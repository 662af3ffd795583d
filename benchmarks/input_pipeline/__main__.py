"""Images a second that the input pipeline of the examples reads, decodes and stacks to batches.

From arrays in memory; from a folder of JPEG files; and from array_record files of such JPEGs, as
Tiny ImageNet is prepared. The images are made here, of smooth noise, and all files are in the page
cache. Then how fast a network trains on them, in units of how fast it trains on one batch again
and again, for which nothing is read: 1 where the input does not bound the training. Other work on
the machine (``load``, the processes that wanted to run at the start) takes its share.

`reading` measures that; `augmentation` the images a second that the augmentation gives on one
device, apart from any training.
"""

from typing import Annotated

import tyro

from benchmarks.input_pipeline import augmentation, reading

Options = (
    Annotated[reading.Options, tyro.conf.subcommand("reading")]
    | Annotated[augmentation.Options, tyro.conf.subcommand("augmentation")]
)


def main(options: reading.Options | augmentation.Options) -> None:
    if isinstance(options, reading.Options):
        reading.main(options)
    else:
        augmentation.main(options)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__, default=reading.Options()))
