"""What all figures share: the styles of methods, and the file."""

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from examples.common.checkpoints import write_bytes

# The colors of Okabe and Ito, which people with color blindness can distinguish.
_COLORS = ("#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_LINES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))


def styles_of(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """For each method, the color and line style with which Matplotlib draws it."""
    styles = [{"color": color, "linestyle": line} for line in _LINES for color in _COLORS]
    return {name: styles[i % len(styles)] for i, name in enumerate(methods)}


def write_picture(path: Path, save: Callable[..., object], **kwargs: Any) -> None:
    """Write a PNG file atomically with ``figure.savefig`` or Pillow's ``image.save``."""
    content = io.BytesIO()
    save(content, format="png", **kwargs)
    write_bytes(path, content.getvalue())
