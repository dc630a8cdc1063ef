"""`python -m mira`."""

from mira.cli import command

command()
