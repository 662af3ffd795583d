"""The message of a program if packages of an extra are not installed: one line, no traceback."""

import sys
from types import TracebackType


def name_on_error(extra: str) -> None:
    """Names the extra to install if a program that runs by ``python -m`` lacks a module.

    Programs that import a package of this repository keep the traceback of their errors.
    """
    if sys.argv[:1] != ["-m"]:  # its value while Python looks for the module to run
        return

    def say(kind: type[BaseException], error: BaseException, traceback: TracebackType | None):
        name = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if name in ("", "arsam_jax", "benchmarks", "examples"):
            sys.__excepthook__(kind, error, traceback)
            return
        print(
            f"error: there is no module {name}. Install the extra [{extra}], from the folder that"
            f" README.md is in: pip install '.[{extra}]'",
            file=sys.stderr,
        )

    sys.excepthook = say
