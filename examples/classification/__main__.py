"""See ``examples.classification.train``."""

import sys

from examples.classification import train

if __name__ == "__main__":
    sys.exit(train.main())
