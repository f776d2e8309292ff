"""What a process may not do that runs somebody's code: no network, no files but the library's, no new processes.

Each measure that the system offers is taken, and named; what it does not offer is left out. Linux: user and network
namespaces, Landlock (5.13 or newer; TCP from 6.7, signals from 6.12), resource limits.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["allow_seconds", "confine"]

_MEMORY = 4 * 2**30
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_NO_NEW_PRIVS, _DUMPABLE = 38, 4
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_READ = 1 << 0 | 1 << 2 | 1 << 3
"""Landlock's rights to execute, to read a file and to read a folder; of a file the first two."""
_READ_FILE = 1 << 0 | 1 << 2
_LIBRARY = (
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/dev/null",
    "/dev/urandom",
)
_SYSTEM = ("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu")
_LIMITS = {
    "memory": (resource.RLIMIT_AS, _MEMORY),
    "core": (resource.RLIMIT_CORE, 0),
    "written": (resource.RLIMIT_FSIZE, 0),
    "files": (resource.RLIMIT_NOFILE, 256),
    "processes": (resource.RLIMIT_NPROC, 0),
}


def confine(readable: Iterable[Path]) -> list[str]:
    """Give up what this process needs no more, for good; it reads the library and these folders. What was taken."""
    libc = ctypes.CDLL(None, use_errno=True)
    taken = ["limits"]
    for kind, most in _LIMITS.values():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    if libc.prctl(_DUMPABLE, 0, 0, 0, 0) == 0:  # its memory and environment are not looked at by its equals
        taken.append("undumpable")
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0:
        taken.append("namespaces")
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        taken.append("no_new_privs")
        if _landlock(libc, [*map(Path, (*_LIBRARY, *_SYSTEM)), *_python(), *readable]):
            taken.append("landlock")
    return taken


def allow_seconds(seconds: int) -> None:
    """So much more processor time; then the system ends this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _python() -> list[Path]:
    """Where modules lie; not the project's own folder, which may hold data."""
    here = Path(__file__).resolve().parent
    return [Path(sys.prefix), Path(sys.base_prefix), here, here.parent / "detectors"]


def _landlock(libc: ctypes.CDLL, readable: Sequence[Path]) -> bool:
    version = libc.syscall(_CREATE, None, 0, 1)
    if version < 1:
        return False
    files = (1 << (13 if version < 2 else 14 if version < 3 else 15)) - 1
    rules = struct.pack("=QQQ", files, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    if (ruleset := libc.syscall(_CREATE, rules, len(rules), 0)) < 0:
        return False
    for path in readable:
        if not path.exists():
            continue
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rights = _READ if path.is_dir() else _READ_FILE
        libc.syscall(_ADD, ruleset, 1, struct.pack("=Qi", rights, place), 0)
        os.close(place)
    done = bool(libc.syscall(_RESTRICT, ruleset, 0) == 0)
    os.close(ruleset)
    return done
