"""The compose file and the image: sound by their own tools' word, and closed where they should be."""

from __future__ import annotations

import importlib
import importlib.util
import ipaddress
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
ALWAYS = {"rabbitmq", "mlflow", "train", "worker", "prometheus", "grafana"}
DEMO = {"shuttle-1", "branch-1"}
ONE_SHOT = {"train"}


def tool(name: str, *arguments: str) -> str:
    """What a tool of the test environment prints. Fails with its complaint."""
    program = Path(sys.executable).parent / name
    assert program.exists(), f"{name} is not installed: run the tests with `make test`, which installs it"
    done = subprocess.run(
        [program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    assert "warn" not in done.stderr.lower(), done.stderr
    return done.stdout


@cache
def resolved(*profiles: str) -> dict[str, Any]:
    """The file as Docker Compose itself understands it."""
    chosen = [argument for profile in profiles for argument in ("--profile", profile)]
    text = tool("docker-compose", "--file", str(COMPOSE), *chosen, "config", "--format", "json")
    found: dict[str, Any] = json.loads(text)
    return found


def service(name: str) -> dict[str, Any]:
    found: dict[str, Any] = resolved("demo")["services"][name]
    return found


every_service = pytest.mark.parametrize("name", sorted(ALWAYS | DEMO))


def test_profiles_hold_the_services_they_should() -> None:
    assert set(resolved()["services"]) == ALWAYS
    assert set(resolved("demo")["services"]) == ALWAYS | DEMO


def test_compose_file_obeys_the_specification() -> None:
    package = importlib.util.find_spec("check_jsonschema")
    assert package is not None, "check-jsonschema is not installed: run the tests with `make test`"
    assert package.origin is not None
    # Its command line needs a newer click than we may have; the schema it carries needs none.
    schema = Path(package.origin).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    problems = importlib.import_module("jsonschema").Draft202012Validator(json.loads(schema.read_text()))
    content = yaml.safe_load(COMPOSE.read_text())
    assert [error.message for error in problems.iter_errors(content)] == []
    assert list(problems.iter_errors({**content, "services": {"worker": {"imgae": "x"}}}))


def test_dockerfile_passes_hadolint_with_no_rule_ignored() -> None:
    tool("hadolint", "--no-color", "--failure-threshold", "style", str(DOCKERFILE))
    assert "hadolint ignore" not in DOCKERFILE.read_text()
    assert not list(ROOT.glob(".hadolint.y*ml"))


@every_service
def test_image_is_pinned_to_a_patch_release(name: str) -> None:
    image = service(name)["image"]
    assert re.fullmatch(r"[a-z0-9/_-]+:v?\d+\.\d+\.\d+(-[a-z]+)?", image), image
    if image.startswith("mmlw:"):
        build = service(name)["build"]
        assert (ROOT / build["dockerfile"]).samefile(DOCKERFILE)
        version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        assert version is not None
        assert image == f"mmlw:{version[1]}"


@every_service
def test_service_is_confined(name: str) -> None:
    it = service(name)
    uid = it["user"].partition(":")[0]
    assert uid.isdecimal()
    assert int(uid) > 0
    assert it["read_only"] is True
    assert it["cap_drop"] == ["ALL"]
    assert "cap_add" not in it
    assert it["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "network_mode", "pid", "ipc", "devices", "userns_mode"} & set(it)
    assert any(mount.startswith("/tmp:") for mount in it["tmpfs"])
    for mount in it.get("volumes", []):
        assert mount["type"] == "volume" or mount["read_only"], mount
        assert "docker.sock" not in mount["source"]


@every_service
def test_service_is_limited_and_comes_back(name: str) -> None:
    it = service(name)
    assert int(it["mem_limit"]) >= 256 * 2**20
    assert it["cpus"] > 0
    assert it["pids_limit"] > 0
    assert it["logging"]["options"]["max-size"]
    assert it["restart"] == ("no" if name in ONE_SHOT else "unless-stopped")


@every_service
def test_service_tells_whether_it_is_well(name: str) -> None:
    check = service(name)["healthcheck"]
    if name in ONE_SHOT:
        assert check == {"disable": True}
        return
    assert check["test"][0] == "CMD"
    assert {"interval", "timeout", "retries", "start_period"} <= set(check)
    if check["test"][1] == "python":
        compile(check["test"][3], name, "exec")


@every_service
def test_service_waits_for_what_it_needs(name: str) -> None:
    expected = {
        "worker": {"rabbitmq": "healthy", "mlflow": "healthy", "train": "completed_successfully"},
        "train": {"mlflow": "healthy"},
        "grafana": {"prometheus": "healthy"},
        **{machine: {"worker": "healthy"} for machine in DEMO},
    }
    needs = service(name).get("depends_on", {})
    wanted = {key: f"service_{condition}" for key, condition in expected.get(name, {}).items()}
    assert {key: need["condition"] for key, need in needs.items()} == wanted


@every_service
def test_ports_are_on_loopback_only(name: str) -> None:
    for port in service(name).get("ports", []):
        assert ipaddress.ip_address(port["host_ip"]).is_loopback


def test_networks_part_the_machines_from_the_rest() -> None:
    networks = {name: set(service(name)["networks"]) for name in ALWAYS | DEMO}
    assert {name for name, joined in networks.items() if "edge" in joined} == DEMO | {"rabbitmq"}
    assert all(networks[machine] == {"edge"} for machine in DEMO)
    assert networks["worker"] == networks["train"] == {"back"}
    assert {name for name in ALWAYS | DEMO if service(name).get("ports")} <= {
        name for name, joined in networks.items() if "desk" in joined
    }
    declared = resolved("demo")["networks"]
    assert declared["edge"]["internal"]
    assert declared["back"]["internal"]


def test_no_password_stands_in_the_file_or_in_the_image() -> None:
    for name in ALWAYS | DEMO:
        it = service(name)
        for key, value in it.get("environment", {}).items():
            if re.search("PASS|SECRET|TOKEN|KEY", key):
                assert key.endswith("__FILE"), key
                assert value.startswith("/run/secrets/")
        words = [*(it.get("entrypoint") or []), *(it.get("command") or [])]
        for word in words:
            assert not re.search(r"://[^/@]*:[^/@]*@", word), word
            assert not re.search(r"pass(word)?=", word), word
    assert not re.search(r"(?i)password|secret|token", DOCKERFILE.read_text())
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert not any(line.startswith(("!deploy", "!.")) for line in ignored)


def test_secrets_are_those_that_generate_sh_makes(tmp_path: Path) -> None:
    made = tmp_path / "generated"
    subprocess.run(
        ["sh", ROOT / "deploy" / "secrets" / "generate.sh"],
        env={"PATH": "/usr/bin:/bin", "MMLW_SECRETS": str(made), "PYTHON": sys.executable},
        check=True,
        timeout=60,
        capture_output=True,
    )
    folder = ROOT / "deploy" / "secrets" / "generated"
    declared = resolved("demo")["secrets"]
    for secret in declared.values():
        assert Path(secret["file"]).parent == folder
        assert (made / Path(secret["file"]).name).is_file()
    used = {grant["source"] for name in ALWAYS | DEMO for grant in service(name).get("secrets", [])}
    assert used == set(declared)
    assert (ROOT / "deploy" / "secrets" / ".gitignore").read_text().splitlines()[-1] == "/generated/"


@every_service
def test_mounted_files_are_in_the_repository(name: str) -> None:
    for mount in service(name).get("volumes", []):
        if mount["type"] == "bind":
            assert Path(mount["source"]).exists(), mount["source"]


@pytest.mark.parametrize("name", ["train", "worker", *sorted(DEMO)])
def test_commands_are_ones_the_product_has(name: str) -> None:
    verb, *arguments = service(name)["command"]
    offered = set(re.findall(r"--[a-z-]+", tool("mmlw", verb, "--help")))
    used = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
    assert used <= offered


def test_mlflow_options_exist() -> None:
    offered = set(re.findall(r"--[a-z-]+", tool("mlflow", "server", "--help")))
    assert {argument.partition("=")[0] for argument in service("mlflow")["command"]} <= offered


def test_worker_is_given_longer_to_stop_than_it_takes() -> None:
    assert service("worker")["stop_grace_period"] == "40s"
    assert service("worker")["init"] is True
