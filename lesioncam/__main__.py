"""`python -m lesioncam`: the same as the `lesioncam` command."""

from lesioncam.cli import run

run()
