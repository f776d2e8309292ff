"""The package's public names, and what its modules may import."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest

import detectors
from detectors import registry
from detectors.base import Weights
from detectors.features import RecentWindow

FOLDER = Path(detectors.__file__).parent
MODULES = sorted(FOLDER.rglob("*.py"))
FORBIDDEN = {"aio_pika", "asyncio", "logging", "mlflow", "stream", "structlog", "time"}


def test_all_names_exist_and_nothing_else_is_public() -> None:
    submodules = {path.relative_to(FOLDER).parts[0].removesuffix(".py") for path in MODULES}
    public = {name for name in vars(detectors) if not name.startswith("_")} - submodules - {"annotations"}
    assert public == set(detectors.__all__)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_detectors_import_neither_the_stream_nor_the_clock(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        assert not {name.split(".")[0] for name in names} & FORBIDDEN


def test_weights_of_an_unknown_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"known: .*elliptic_envelope"):
        registry.load(Weights("oracle", ("x",), 1.0, {}, {}))


def test_a_recent_window_refuses_rows_that_do_not_fit() -> None:
    recent = RecentWindow(2, 4)
    state = dict(recent.snapshot(np.array([0])))
    with pytest.raises(ValueError, match="negative"):
        recent.restore(np.array([0]), {**state, "count": np.array([-1])})
    with pytest.raises(ValueError, match="expected"):
        RecentWindow(3, 4).restore(np.array([0]), state)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_examples_of_the_docstrings_come_out_as_written(path: Path) -> None:
    name = ".".join(["detectors", *path.relative_to(FOLDER).with_suffix("").parts]).removesuffix(".__init__")
    assert doctest.testmod(importlib.import_module(name)).failed == 0
