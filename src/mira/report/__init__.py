"""Pages for people."""

from mira.report.write import write_report

__all__ = ["write_report"]
