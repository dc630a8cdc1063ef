"""The report's HTML: one file that needs nothing else, and that cannot ask for anything else.

Every text from outside (names of files, classes, runs) goes through `escape`; the page's own security policy
forbids scripts and every request.
"""

import re
from collections.abc import Iterable
from html import escape
from importlib import resources
from itertools import groupby

from mira.evaluation.table import Row, cell_text, kinds, notes, tabulate
from mira.report.contents import Chart, Picture, ReportData, Strip

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_PIECES = re.compile(r"[^:/_@]{0,15}[:/_@]|[^:/_@]{1,16}")  # of a name, that stay together in a table
_LISTED = 50  # skipped pictures that are named on the page

_GLOSSARY = (
    ("Prototype", "A direction in feature space that pictures gather around, found without labels. There are K."),
    (
        "Pseudo-label",
        "A picture's distribution over the prototypes, which the student learns to predict from another crop.",
    ),
    (
        "Label information",
        "Mutual information of pseudo-labels and pictures, in nats: evenness of the prototypes less the "
        "uncertainty of single labels. At most the logarithm of the number of prototypes or of pictures in a batch, "
        "whichever is smaller.",
    ),
    ("Teacher", "A slow average of the network that is trained. Its backbone is what is evaluated and exported."),
    ("Features", "The backbone's output for a picture: what you would use for your own task."),
    (
        "k-NN, k, T",
        "A picture gets the class that its k nearest labelled pictures vote for, each with weight exp(similarity / T).",
    ),
    (
        "1 % of the labels",
        "Only that share of the labelled pictures, even over the classes, may vote: few labels show features, "
        "many flatter raw pixels.",
    ),
    (
        "Raw pixels",
        "A baseline: the same protocol on the pictures' pixels, centered. Learned features should be above it.",
    ),
    ("Random backbone", "A baseline: the same architecture before any training. What is above it was learned."),
    (
        "NMI, AMI, ARI",
        "Agreement of clusters with classes, 100 for identical ones. AMI and ARI are 0 for chance; NMI somewhat above "
        "it with many clusters.",
    ),
    (
        "Purity",
        "Share of pictures that are of the most frequent class of their cluster. Rises with the number of clusters.",
    ),
    ("Feature rank, RankMe", "How many directions the features spread over."),
    (
        "alpha-ReQ",
        "How fast the variances of the features' directions fall, as a power of their rank. Near 1 is usual for "
        "features that serve many tasks; far above it, a few directions carry everything.",
    ),
)


def render(data: ReportData) -> str:
    """The whole page."""
    style = resources.files("mira.report").joinpath("style.css").read_text("utf-8")
    body = "".join(
        (
            _header(data),
            _prototypes(data),
            _neighbours(data),
            _evaluation(data),
            _curves(data.charts),
            _missing(data.missing),
            _skipped(data.skipped),
            _glossary(),
            _settings(data.settings),
        )
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(data.title)} · MIRA</title>\n'
        f"<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}<footer>Written by <code>mira report</code>. This page is complete in itself: it "
        "loads nothing and sends nothing.</footer>\n</main>\n</body>\n</html>\n"
    )


def _header(data: ReportData) -> str:
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{_whole(value)}</dd></div>" for name, value in data.facts)
    verdict = data.verdict
    notice = f'<p class="notice">{escape(data.notice)}</p>\n' if data.notice else ""
    return (
        f'<p class="kicker">MIRA pretraining report</p>\n<h1>{escape(data.title)}</h1>\n'
        f'<p class="subtitle">{escape(data.subtitle)}</p>\n'
        f'<section class="verdict {verdict.mark}" aria-label="Verdict"><strong>{escape(verdict.headline)}</strong>'
        f"<p>{_whole(verdict.sentence)}</p></section>\n{notice}"
        f'<dl class="facts">{facts}</dl>\n'
    )


def _whole(text: str) -> str:
    """A text in which no line begins with a percent sign."""
    return escape(text).replace(" %", "&nbsp;%")


def _section(title: str, lead: str, content: str) -> str:
    return f'<section>\n<h2>{escape(title)}</h2>\n<p class="lead">{escape(lead)}</p>\n{content}\n</section>\n'


def _evaluation(data: ReportData) -> str:
    rows = tabulate(data.results)
    if not rows:
        return ""
    parts = []
    for shift, members in groupby(rows, key=lambda row: row.shift):
        moved = list(members)
        if shift:
            parts.append(f'<h3 class="part">Test pictures moved by up to {shift} px</h3>')
        parts.append(f'<article class="card scroll" tabindex="0">{_table(moved)}</article>')
    remarks = "".join(f"<li>{escape(note)}</li>" for note in notes(data.results))
    return _section(
        "Evaluation",
        "The backbone under each protocol, in percent where nothing else is said, beside baselines: what the same "
        "protocol gives without any learning. The best of each row is bold.",
        f'{"".join(parts)}<ul class="notes">{remarks}</ul>',
    )


def _table(rows: list[Row]) -> str:
    """A column for each kind of features, a row for each metric or k, and a line of its own for each group of rows."""
    columns = kinds(rows)
    head = "".join(f'<th scope="col">{_breakable(kind)}</th>' for kind in columns)
    bodies = []
    for group, members in groupby(rows, key=lambda row: row.group):
        lines = [f'<tr class="group"><th colspan="{len(columns) + 1}" scope="rowgroup">{_breakable(group)}</th></tr>']
        for row in members:
            cells = "".join(f'<td class="{_mark(row, kind)}">{_cell(row, kind)}</td>' for kind in columns)
            lines.append(f'<tr><th scope="row">{_breakable(row.setting)}</th>{cells}</tr>')
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    return f'<table class="results"><thead><tr><td></td>{head}</tr></thead>{"".join(bodies)}</table>'


def _cell(row: Row, kind: str) -> str:
    """A value; on a narrow screen its spread stands below it."""
    value, sign, spread = cell_text(row, kind).partition(" ± ")
    return f'{value}<span class="spread"> ± {spread}</span>' if sign else value


def _breakable(text: str) -> str:
    """A text whose words stay whole; names may break after their signs and, if longer than any word, elsewhere."""
    return " ".join("<wbr>".join(map(escape, _PIECES.findall(word))) for word in text.split(" "))


def _mark(row: Row, kind: str) -> str:
    return "best" if kind in row.best else "value"


def _curves(charts: Iterable[Chart]) -> str:
    cards = "".join(
        f'<article class="card"><header><h3>{escape(chart.title)}</h3><span class="caption">{escape(chart.last)}</span>'
        f'</header>{chart.svg}<p class="reading">{escape(chart.reading)}</p></article>\n'
        for chart in charts
    )
    if not cards:
        return ""
    return _section(
        "Training",
        "What the run wrote down of itself. The value beside each title is the newest.",
        f'<div class="grid charts">{cards}</div>',
    )


def _prototypes(data: ReportData) -> str:
    if not data.prototypes:
        return ""
    return _section(
        "What the prototypes found",
        f"The prototypes that most pictures belong to, each with its most confident pictures. {data.sampled}",
        f'<div class="grid strips">{"".join(map(_strip, data.prototypes))}</div>',
    )


def _neighbours(data: ReportData) -> str:
    if not data.neighbours:
        return ""
    return _section(
        "Nearest neighbours",
        "Pictures drawn at random, outlined, each with those whose features are most similar, nearest first. None was "
        f"chosen by hand. {data.sampled}",
        f'<div class="grid strips">{"".join(map(_strip, data.neighbours))}</div>',
    )


def _strip(strip: Strip) -> str:
    pictures = "".join(_image(picture) for picture in strip.pictures)
    kind = "pictures"
    if strip.query is not None:
        kind += " with-query"
        pictures = _image(strip.query, "query") + '<span class="rule"></span>' + pictures
    return (
        f'<article class="card"><header><h3>{escape(strip.title)}</h3><span class="caption">{escape(strip.caption)}'
        f'</span></header><div class="{kind}">{pictures}</div></article>\n'
    )


def _image(picture: Picture, kind: str = "") -> str:
    # Small pictures are stored without loss and shown with hard pixels, not blurred to the size of the page.
    small = "small" if picture.address.startswith("data:image/png") else ""
    names = " ".join(filter(None, (kind, small)))
    alt = escape(picture.alt)
    return f'<img class="{names}" src="{escape(picture.address)}" alt="{alt}" title="{alt}">'


def _missing(missing: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in missing)
    if not items:
        return ""
    return _section("Not on this page", "What could not be shown, and what would bring it.", f"<ul>{items}</ul>")


def _skipped(skipped: tuple[tuple[str, str], ...]) -> str:
    if not skipped:
        return _section("Skipped pictures", "None: every picture the run met could be read.", "")
    rows = "".join(f"<tr><td>{escape(key)}</td><td>{escape(reason)}</td></tr>" for key, reason in skipped[:_LISTED])
    more = f"<p>and {len(skipped) - _LISTED:,} more, in skipped.txt.</p>" if len(skipped) > _LISTED else ""
    return _section(
        "Skipped pictures",
        f"{len(skipped):,} could not be read and took no part in training.",
        f"<details><summary>Their names</summary><table>{rows}</table>{more}</details>",
    )


def _glossary() -> str:
    entries = "".join(f"<div><dt>{escape(word)}</dt><dd>{escape(text)}</dd></div>" for word, text in _GLOSSARY)
    return f'<section>\n<h2>What the words mean</h2>\n<dl class="glossary">{entries}</dl>\n</section>\n'


def _settings(settings: tuple[tuple[str, str], ...]) -> str:
    if not settings:
        return ""
    rows = "".join(f"<tr><td><code>{escape(key)}</code></td><td>{escape(value)}</td></tr>" for key, value in settings)
    return _section(
        "Recipe",
        "Every setting of the run, as recipe.yaml has it.",
        f"<details><summary>Show all {len(settings)}</summary><table>{rows}</table></details>",
    )
