"""`python -m stream` is `mmlw`."""

from stream.cli import main

main()
