"""What the library and its tests import."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = [*TESTS.glob("*.py"), *TESTS.glob("library/*.py"), *TESTS.parent.glob("arsam_jax/*.py")]


def imported_modules(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_library_and_its_tests_do_not_import_examples_or_benchmarks(path):
    for module in imported_modules(path.read_text()):
        assert not {"examples", "benchmarks"} & set(module.split("."))
