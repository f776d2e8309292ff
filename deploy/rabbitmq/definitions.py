"""Write RabbitMQ's definitions.json: a user for each role, what each may do, and the exchanges.

    python3 deploy/rabbitmq/definitions.py FOLDER

FOLDER holds a `<user>_password` file for each user; the definitions go beside them. Nothing but the standard
library is needed. A password that has not changed keeps its salt, so a second run writes the same file.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["EXCHANGES", "ROLES", "build", "hashed", "verifies"]

VHOST = "/"
EXCHANGES = ("mmlw.sensors", "mmlw.alerts", "mmlw.control", "mmlw.deadletters")
ROLES = ("worker", "operator", "dashboard", "monitoring")
"""Users that are roles. Every other password file is a machine's, and its user is the machine."""

_MACHINE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SUFFIX = "_password"
_NOTHING = "^$"
_WORD = "[A-Za-z0-9_-]+"
_OWN_QUEUES = rf"mmlw\.(readings|control)\.{_WORD}"
_REPLIES = r"mmlw\.reply\.operator\..+"


def build(passwords: dict[str, str], before: dict[str, Any] | None = None) -> dict[str, Any]:
    """The definitions for these users. `before` are earlier ones, whose salts are kept where they still fit.

    Raises ValueError for a missing role, a bad machine name or an empty password.
    """
    if missing := [role for role in ROLES if role not in passwords]:
        raise ValueError(f"no password for {', '.join(missing)}: run deploy/secrets/generate.sh")
    for user, password in passwords.items():
        if not _MACHINE.fullmatch(user) or user == "guest":
            raise ValueError(f'"{user}" cannot be a user: letters, digits, - and _, at most 64, not guest')
        if not password:
            raise ValueError(f'the password of "{user}" is empty: delete its file and generate it again')
    known = {user["name"]: user["password_hash"] for user in (before or {}).get("users", [])}
    users = sorted(passwords)
    return {
        "vhosts": [{"name": VHOST}],
        "users": [
            {
                "name": user,
                "password_hash": (
                    known[user] if verifies(passwords[user], known.get(user)) else hashed(passwords[user])
                ),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": ["monitoring"] if user == "monitoring" else [],
            }
            for user in users
        ],
        "permissions": [
            {"user": user, "vhost": VHOST, **_permission(user)} for user in users if user != "monitoring"
        ],
        "topic_permissions": [entry for user in users for entry in _topic_permissions(user)],
        "exchanges": [
            {
                "name": name,
                "vhost": VHOST,
                "type": "topic",
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": {},
            }
            for name in EXCHANGES
        ],
    }


def hashed(password: str, salt: bytes | None = None) -> str:
    """RabbitMQ's salted SHA-256: base64 of four bytes of salt and the digest of salt and password."""
    salt = os.urandom(4) if salt is None else salt
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def verifies(password: str, known: str | None) -> bool:
    """True where `known` is a hash of this password."""
    return known is not None and hmac.compare_digest(hashed(password, base64.b64decode(known)[:4]), known)


def _permission(user: str) -> dict[str, str]:
    if user == "worker":
        # Declares its exchanges and queues. Binding a queue needs write on the queue and read on the exchange;
        # answering an operator needs write on the default exchange. Never write on mmlw.sensors or mmlw.control.
        return {
            "configure": rf"^(mmlw\.(sensors|alerts|control|deadletters)|{_OWN_QUEUES})$",
            "write": rf"^(mmlw\.(alerts|deadletters)|{_OWN_QUEUES}|amq\.default)$",
            "read": rf"^(mmlw\.(sensors|alerts|control|deadletters)|{_OWN_QUEUES})$",
        }
    if user == "operator":
        return {
            "configure": f"^{_REPLIES}$",
            "write": r"^mmlw\.control$",
            "read": rf"^({_REPLIES}|mmlw\.(alerts|deadletters))$",
        }
    if user == "dashboard":
        return {
            "configure": r"^dashboard\..+$",
            "write": r"^dashboard\..+$",
            "read": r"^(mmlw\.alerts|dashboard\..+)$",
        }
    return {"configure": _NOTHING, "write": r"^mmlw\.sensors$", "read": _NOTHING}


def _topic_permissions(user: str) -> Iterator[dict[str, str]]:
    """What a user's routing keys must look like. RabbitMQ puts the user's name in place of {username}."""
    if user == "worker":
        rules = {"mmlw.alerts": (r"^alert\.", ".*"), "mmlw.deadletters": (r"^deadletter\.", ".*")}
    elif user == "operator":
        rules = {"mmlw.control": (rf"^control\.{_WORD}\.{_WORD}$", _NOTHING)}
    elif user in ROLES:
        return
    else:
        rules = {"mmlw.sensors": (r"^sensor\.{username}\.[^.]+$", _NOTHING)}
    for exchange, (write, read) in rules.items():
        yield {"user": user, "vhost": VHOST, "exchange": exchange, "write": write, "read": read}


def main(folder: Path) -> None:
    """Write FOLDER/definitions.json from the password files in FOLDER."""
    passwords = {
        path.name.removesuffix(_SUFFIX): path.read_text().strip()
        for path in sorted(folder.glob(f"*{_SUFFIX}"))
        if path.name != f"grafana_admin{_SUFFIX}"
    }
    target = folder / "definitions.json"
    before = json.loads(target.read_text()) if target.exists() else None
    text = json.dumps(build(passwords, before), indent=2) + "\n"
    if not target.exists() or target.read_text() != text:
        fresh = target.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        fresh.write_text(text)
        fresh.replace(target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: definitions.py FOLDER")
    try:
        main(Path(sys.argv[1]))
    except ValueError as error:
        sys.exit(f"{sys.argv[1]}: {error}")
