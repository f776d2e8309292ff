"""A real `mlflow server` on a port of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.rabbitmq_node import free_port

__all__ = ["end", "mlflow_server"]


@contextmanager
def mlflow_server(
    folder: Path, database: Path, settings: Mapping[str, str] | None = None
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Its address and process, on a copy of this migrated database; artifacts are in `folder/store`.

    `settings` are further variables of its environment."""
    shutil.copy(database, folder / "server.db")
    port = free_port()
    command = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = [
        f"--backend-store-uri=sqlite:///{folder}/server.db",
        f"--artifacts-destination={folder}/store",
    ]
    process = subprocess.Popen(
        [sys.executable, *command, *stores],
        cwd=folder,
        env=os.environ
        | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        | dict(settings or {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    drain = threading.Thread(target=process.stderr.read)
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "Uvicorn running on" in line:
                break
        else:
            raise AssertionError("the server did not start:\n" + "".join(lines))
        drain.start()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20) as answer:
            assert answer.status == 200
        yield f"http://127.0.0.1:{port}", process
    finally:
        end(process)
        if drain.ident is not None:
            drain.join()
        process.stderr.close()


def end(process: subprocess.Popen[str]) -> None:
    """Stop it, unless it has ended."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)
