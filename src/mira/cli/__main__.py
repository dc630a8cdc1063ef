"""`python -m mira.cli`."""

from mira.cli import command

command()
