"""`python -m stream` is `mmlw`."""

from stream.cli import main

if __name__ == "__main__":
    main()
