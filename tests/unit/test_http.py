"""The worker's HTTP: everybody may read, only who has the token may change something."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stream.control import Control
from stream.errors import ConfigError
from stream.http import bind, read_token, serving
from stream.runtimes.local import Worker
from tests.aio import run
from tests.plant import Plant, ScaleShelf, topology

TOKEN = "a long random täxt"


@dataclass
class Site:
    """A running plant and the address of its HTTP."""

    plant: Plant
    worker: Worker
    port: int

    async def get(self, path: str, **settings: Any) -> tuple[int, Any]:
        return await asyncio.to_thread(self._ask, "GET", path, None, {}, **settings)

    async def post(
        self, path: str, body: bytes | dict[str, Any] | None = None, *, authorization: str | None = None
    ) -> tuple[int, Any]:
        raw = json.dumps(body).encode() if isinstance(body, dict) else body
        headers = {} if authorization is None else {"Authorization": authorization}
        return await asyncio.to_thread(self._ask, "POST", path, raw, headers)

    async def command(self, verb: str, body: bytes | dict[str, Any] | None = None) -> tuple[int, Any]:
        """With the token."""
        return await self.post(f"/topologies/plant/{verb}", body, authorization=f"Bearer {TOKEN}")

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, Any]:
        raw = {name: value.encode().decode("latin-1") for name, value in headers.items()}
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=body, headers=raw, method=method
        )
        try:
            with urllib.request.urlopen(asked, timeout=20) as answer:
                status, said = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, said = error.code, error.read()
        with contextlib.suppress(ValueError):
            return status, json.loads(said)
        return status, said.decode()


@contextlib.asynccontextmanager
async def site(folder: Path, *, token: str | None = TOKEN) -> AsyncIterator[Site]:
    plant = Plant(folder, topology(batch_model=True), shelf=ScaleShelf())
    await plant.declare()
    async with plant.running() as worker:
        listener = bind("127.0.0.1:0")
        async with serving(listener, worker.metrics, worker.problems, control=worker.control, token=token):
            yield Site(plant, worker, listener.getsockname()[1])


async def audited(plant: Plant) -> list[tuple[str, str, str]]:
    lines = (await plant.ask("audit"))["audit"]
    return [(line["by"], line["verb"], line["status"]) for line in lines if line["verb"] != "status"]


def test_everybody_may_read_and_nobody_may_change_anything_without_a_token(tmp_path: Path) -> None:
    async def story() -> None:
        async with site(tmp_path, token=None) as found:
            for path in ("/metrics", "/healthz", "/readyz"):
                assert (await found.get(path))[0] == 200
            for verb in ("pause", "resume", "rollback", "swap"):
                for authorization in (None, "Bearer ", f"Bearer {TOKEN}", "Bearer None"):
                    answer = await found.post(f"/topologies/plant/{verb}", authorization=authorization)
                    assert answer[0] == 403
                    assert "--http-token-file" in answer[1]["error"]
            assert not (await found.plant.ask("status"))["paused"]
            assert await audited(found.plant) == []

    run(story())


WRONG = [
    None,
    "",
    TOKEN,
    "Bearer",
    "Bearer ",
    f"Basic {TOKEN}",
    f"Bearer {TOKEN[:-1]}",
    f"Bearer {TOKEN}x",
    f"Bearer {TOKEN.upper()}",
    f"Bearer Bearer {TOKEN}",
    "Bearer " + "x" * 10_000,
    "Bearer \xff",
]


def test_every_wrong_token_is_refused(tmp_path: Path) -> None:
    async def story() -> int:
        async with site(tmp_path) as found:
            refused = 0
            for authorization in WRONG:
                status, said = await found.post("/topologies/plant/pause", authorization=authorization)
                refused += (status, list(said)) == (401, ["error"])
                status, _ = await found.post("/topologies/nosuch/pause", authorization=authorization)
                assert status == 401, "a stranger does not learn which topologies there are"
            assert not (await found.plant.ask("status"))["paused"]
            assert await audited(found.plant) == []
            return refused

    refused = run(story())
    print(f"{refused} of {len(WRONG)} refused")
    assert refused == len(WRONG)


def test_commands_with_the_token_go_the_way_of_the_others(tmp_path: Path) -> None:
    async def story() -> None:
        async with site(tmp_path) as found:
            status, receipt = await found.command("pause")
            assert (status, receipt["status"], receipt["by"]) == (200, "applied", "http")
            assert receipt["command"]
            assert (await found.plant.ask("status"))["paused"]
            assert (await found.plant.ask("resume"))["status"] == "applied"
            digest = f"sha256:{2:064x}"
            status, receipt = await found.command("swap", {"model": "models:/scale/2", "digest": digest})
            assert (status, receipt["model"]["version"], receipt["replaced"]["version"]) == (200, 2, 1)
            status, receipt = await found.command("rollback")
            assert (status, receipt["model"]["version"]) == (200, 1)
            status, receipt = await found.command("status")
            assert (status, receipt["models"]["scale"]["version"]) == (200, "1")
            assert await audited(found.plant) == [
                ("http", "pause", "applied"),
                ("operator", "resume", "applied"),
                ("http", "swap", "applied"),
                ("http", "rollback", "applied"),
            ]

    run(story())


def test_a_command_with_an_id_is_carried_out_once(tmp_path: Path) -> None:
    async def story() -> None:
        async with site(tmp_path) as found:
            status, first = await found.command("pause", {"id": "once"})
            await found.command("resume")
            again = await found.command("pause", {"id": "once"})
            assert (status, again[0], again[1]["duplicate"]) == (200, 200, True)
            assert again[1]["issued"] == first["issued"]
            assert not (await found.plant.ask("status"))["paused"]
            assert (await found.command("resume", {"id": "once"}))[0] == 409

    run(story())


BAD: list[tuple[str, bytes | dict[str, Any], str]] = [
    ("pause", b"{", "the body is not a command"),
    ("pause", b"[]", "the body is not a command"),
    ("pause", {"issued": 1e9}, "expired"),
    ("pause", {"issued": 9e9}, "in the future"),
    ("pause", {"id": ""}, "needs an id"),
    ("pause", {"model": "models:/scale/2"}, "takes no"),
    ("pause", b" " * 20_000, "a command has at most"),
    ("stop", {}, "unknown command"),
    ("swap", {}, "swap needs"),
    ("swap", {"model": "models:/scale/99"}, "no such version"),
    ("swap", {"model": "models:/scale/2", "digest": "sha256:0"}, "not the one that the command names"),
    ("rollback", {}, "no earlier model"),
]


def test_every_bad_command_is_answered_with_its_receipt_and_audited(tmp_path: Path) -> None:
    async def story() -> int:
        async with site(tmp_path) as found:
            refused = 0
            for verb, body, reason in BAD:
                status, receipt = await found.command(verb, body)
                refused += status == 409 and receipt["status"] == "refused" and reason in receipt["reason"]
            after = await found.plant.ask("status")
            assert (after["paused"], after["models"]["scale"]["version"]) == (False, "1")
            assert await audited(found.plant) == [("http", verb, "refused") for verb, _, _ in BAD]
            return refused

    refused = run(story())
    print(f"{refused} of {len(BAD)} refused")
    assert refused == len(BAD)


def test_what_is_not_there_and_what_is_too_much(tmp_path: Path) -> None:
    async def story() -> None:
        async with site(tmp_path) as found:
            token = f"Bearer {TOKEN}"
            assert (await found.post("/topologies/nosuch/pause", authorization=token))[0] == 404
            assert (await found.post("/topologies/plant/x/pause", authorization=token))[0] == 404
            assert (await found.get("/topologies/plant/pause"))[0] == 405
            status, said = await found.command("pause", b" " * 70_000)
            assert (status, said["error"]) == (
                413,
                "the body is too large: a command has at most 16384 bytes",
            )
            assert not (await found.plant.ask("status"))["paused"]

    run(story())


@pytest.mark.parametrize(
    ("verb", "remedy"),
    [("train", 'from the stream or a capture ("source": '), ("predict", "fewer rows at a time")],
)
def test_commands_that_bring_readings_may_be_as_large_over_http_as_over_the_broker(
    tmp_path: Path, verb: str, remedy: str
) -> None:
    most = 8_388_608

    async def story() -> None:
        async with site(tmp_path) as found:
            for size in (70_000, most):
                status, receipt = await found.command(verb, b"{}".ljust(size))
                assert (status, receipt["status"]) == (409, "refused"), "it was read, and then looked at"
                assert "bytes" not in receipt["reason"]
            for size in (most + 1, 3 * most):
                status, said = await found.command(verb, b"{}".ljust(size))
                assert status == 413
                assert f"at most {most} bytes" in said["error"]
                assert remedy in said["error"]
            assert await audited(found.plant) == [("http", verb, "refused")] * 2
            assert (await found.command("pause"))[0] == 200

    run(story())


def test_rows_beyond_64_kb_are_predicted_over_http(tmp_path: Path) -> None:
    async def story() -> None:
        async with site(tmp_path) as found:
            rows = [{"machine": f"m{i:0100}", "values": {"a": float(i), "b": 0.0}} for i in range(1000)]
            assert len(json.dumps({"rows": rows})) > 65_536
            status, receipt = await found.command("predict", {"rows": rows})
            assert (status, receipt["status"]) == (200, "applied")
            assert [told["scores"]["scale"] for told in receipt["predictions"]] == [
                float(i) for i in range(1000)
            ]

    run(story())


def test_who_never_stops_sending_is_told_all_the_same(tmp_path: Path) -> None:
    async def story() -> bytes:
        async with site(tmp_path) as found:
            reader, writer = await asyncio.open_connection("127.0.0.1", found.port)
            head = "POST /topologies/plant/pause HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n"
            writer.write(f"{head}Authorization: Bearer {TOKEN}\r\n\r\n".encode() + b" " * 300_000)
            said = await reader.readline()
            writer.close()
            return said

    assert run(story()).startswith(b"HTTP/1.1 413 ")


def test_a_topology_that_is_starting_takes_no_command_and_says_so(tmp_path: Path) -> None:
    async def story() -> None:
        def starting(name: str) -> Control | None:
            return None

        plant = Plant(tmp_path, topology())
        listener = bind("127.0.0.1:0")
        async with serving(listener, plant.metrics, dict, control=starting, token=TOKEN):
            found = Site(plant, plant.worker(), listener.getsockname()[1])
            status, said = await found.command("pause")
            assert (status, "send the command again" in said["error"]) == (503, True)

    run(story())


def test_a_body_that_does_not_come_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.http._PATIENCE", 0.2)

    async def story() -> None:
        async with site(tmp_path) as found:
            reader, writer = await asyncio.open_connection("127.0.0.1", found.port)
            head = "POST /topologies/plant/pause HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
            writer.write(f"{head}Authorization: Bearer {TOKEN}\r\n\r\n{{".encode())
            assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
            writer.close()
            await writer.wait_closed()

    run(story())


def test_http_is_bound_to_loopback_unless_told_otherwise() -> None:
    from stream.cli import cli

    default = next(option for option in cli.commands["run"].params if option.name == "http").default
    assert isinstance(default, str)
    assert default.startswith("127.0.0.1:")
    with bind(":0") as listener:
        assert listener.family == socket.AF_INET
        assert listener.getsockname()[0] == "127.0.0.1"


def test_a_token_file_that_is_no_secret_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    for content, mode, expected in (
        (b"", 0o600, "is empty: write a long random text into it"),
        (b" \n", 0o600, "is empty"),
        (b"secret", 0o644, f"is open to every user of this host: chmod 600 {file}"),
        (b"secret", 0o602, "is open to every user"),
        (b"\xff", 0o600, "decode"),
    ):
        file.unlink(missing_ok=True)
        file.write_bytes(content)
        file.chmod(mode)
        with pytest.raises(ConfigError, match=expected) as caught:
            read_token(file)
        assert str(caught.value).startswith("--http-token-file: ")
        assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="No such file"):
        read_token(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="directory"):
        read_token(tmp_path)
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o640)
    assert read_token(file) == TOKEN


def test_http_keeps_the_order_of_the_broker(tmp_path: Path) -> None:
    """A command that states no time comes now: after one that an operator's fast clock put into the future, which has
    the order of its own."""

    async def story() -> None:
        async with site(tmp_path) as found:
            ahead = await found.command("pause", {"issued": time.time() + 50})
            assert ahead[0] == 200
            assert (await found.command("resume"))[0] == 200
            late = await found.command("pause", {"issued": time.time() - 1})
            assert (late[0], "out of order" in late[1]["reason"]) == (409, True)

    run(story())
