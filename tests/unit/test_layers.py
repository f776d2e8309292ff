"""The structure of the two packages: who may import what, and which names are public."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for package in ("detectors", "stream")
    for path in (ROOT / package).rglob("*.py")
)
DETECTORS_MAY = {
    "detectors",
    "msgspec",
    "numba",
    "numpy",
    "onnx",
    "onnxruntime",
    "pandas",
    "pyod",
    "river",
    "scipy",
    "sklearn",
}
DETECTORS_MAY_NOT = {"asyncio", "time", "logging", "socket", "subprocess", "threading"}
STREAM_KNOWS = {
    "base",
    "table",
    "registry",
    "features",
    "quality",
    "datasets",
    "calibration",
    "census",
    "rates",
    "openings",
    "health",
    "kernels",
}
"""Of detectors: the contract, the registry of kinds, and mathematics; never a detector by name."""
ONE_PLACE = {  # the modules of its adapter, and no others
    "aio_pika": {
        "stream.brokers.rabbitmq",
        "stream.brokers.rabbitmq_errors",
        "stream.brokers.rabbitmq_intake",
    },
    "aiormq": {"stream.brokers.rabbitmq"},
    "croniter": {"stream.cron"},
    "mlflow": {"stream.models", "stream.outside_child"},
    "starlette": {"stream.http"},
    "uvicorn": {"stream.http"},
    "prometheus_client": {"stream.metrics"},
    "sqlite3": {"stream.checkpoint", "stream.checkpoint_files", "stream.sealed"},
    "matplotlib": {"stream.training_figures"},
    "plotly": {"stream.report"},
    "pyarrow": {"stream.capture_files"},
    "structlog": {"stream.log"},
    "click": {
        "stream.backtesting",
        "stream.captured",
        "stream.cli",
        "stream.kinds",
        "stream.letters",
        "stream.predicting_command",
        "stream.lineup",
        "stream.simulation.command",
        "stream.options",
        "stream.starter",
        "stream.steering",
        "stream.training_command",
        "stream.upkeep",
        "stream.watch",
    },
}


def imports(module: str) -> set[str]:
    """Every module that this one imports, absolute, wherever in its text."""
    path = ROOT / (module.replace(".", "/") + ".py")
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def tops(module: str) -> set[str]:
    return {name.split(".")[0] for name in imports(module)}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("detectors")])
def test_detectors_are_mathematics(module: str) -> None:
    used = tops(module)
    assert not used & DETECTORS_MAY_NOT
    assert used <= DETECTORS_MAY | set(sys.stdlib_module_names)


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("stream")])
def test_stream_knows_detectors_by_contract_only(module: str) -> None:
    used = {name.split(".")[1] for name in imports(module) if name.startswith("detectors.")}
    assert used <= STREAM_KNOWS
    assert not any(name.split(".")[0] in ("topologies", "river", "tests") for name in imports(module))


@pytest.mark.parametrize("driver", sorted(ONE_PLACE))
def test_driver_is_imported_in_one_place(driver: str) -> None:
    users = {module for module in MODULES if driver in tops(module)}
    assert users <= ONE_PLACE[driver]
    assert users or not ONE_PLACE[driver]


@pytest.mark.parametrize("module", MODULES)
def test_all_names_exactly_what_is_public(module: str) -> None:
    if module.endswith("__init__"):
        module = module.removesuffix(".__init__")
    loaded = importlib.import_module(module)
    if not (declared := getattr(loaded, "__all__", None)):
        return
    assert list(declared) == sorted(
        declared, key=lambda name: (not name.isupper(), not name[0].isupper(), name)
    )
    for name in declared:
        assert hasattr(loaded, name), f"{module}.{name} is in __all__ and does not exist"
    own = {
        name
        for name, value in vars(loaded).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module and callable(value)
    }
    assert own <= set(declared), f"public but not in __all__: {own - set(declared)}"


def test_nothing_is_called_utils_or_common() -> None:
    assert not [
        module for module in MODULES if {"utils", "common", "helpers", "misc"} & set(module.split("."))
    ]


def test_light_commands_do_not_load_heavy_drivers() -> None:
    import subprocess

    heavy = {
        "aio_pika",
        "llvmlite",
        "matplotlib",
        "mlflow",
        "onnx",
        "onnxruntime",
        "pandas",
        "plotly",
        "pyod",
    }
    code = f"import sys, stream.cli, stream.config; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
