"""Crashes for real: a worker is killed by SIGKILL again and again, and what it leaves is audited."""
