"""What a report says, apart from how it looks: plain values that `page.render` turns into HTML."""

from dataclasses import dataclass
from typing import Literal

from mira.evaluation.results import Result


@dataclass(frozen=True)
class Verdict:
    """Did it work? A word and a sentence for a person who will read nothing else."""

    mark: Literal["good", "unclear", "bad"]
    headline: str
    sentence: str


@dataclass(frozen=True)
class Chart:
    """A drawn curve, its newest value in words, and how to read it."""

    title: str
    svg: str
    last: str
    reading: str


@dataclass(frozen=True)
class Picture:
    """A thumbnail as a `data:` address, and what to say in its place."""

    address: str
    alt: str


@dataclass(frozen=True)
class Strip:
    """Pictures that belong together: those of a prototype, or the neighbours of `query`."""

    title: str
    caption: str
    pictures: tuple[Picture, ...]
    query: Picture | None = None


@dataclass(frozen=True)
class ReportData:
    """Everything on the page.

    Attributes:
        title: name of the run.
        subtitle: what was trained on what, in one line.
        verdict: did it work?
        notice: what a reader must know before all else; empty for nothing.
        facts: (name, value) of what was run, on what, how long.
        charts: curves of the run.
        results: evaluations, as in results.jsonl.
        prototypes: prototypes with their most confident pictures.
        neighbours: random pictures with their nearest ones.
        sampled: how many pictures the two sections above were chosen from, in words.
        skipped: (name, reason) of unreadable pictures.
        missing: sentences on what could not be shown, and what would bring it.
        settings: (key, value) of the whole recipe.
    """

    title: str
    subtitle: str
    verdict: Verdict
    notice: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    charts: tuple[Chart, ...] = ()
    results: tuple[Result, ...] = ()
    prototypes: tuple[Strip, ...] = ()
    neighbours: tuple[Strip, ...] = ()
    sampled: str = ""
    skipped: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
