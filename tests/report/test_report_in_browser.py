import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mira.evaluation.results import LEARNED, PIXELS, RANDOM, Result, append_results
from mira.report.contents import Chart, Picture, ReportData, Strip, Verdict
from mira.report.page import render
from mira.report.thumbnails import thumbnail
from mira.report.write import write_report

HOSTILE = (
    "<script>document.title='owned'</script>\"'&amp;<img src=https://example.org/x onerror=alert(1)> 犬‮ " + "w" * 300
)

# What lies in a box of its own that scrolls sideways can be reached; the box itself must not stand out.
OVERFLOWING = """[...document.querySelectorAll('main *')].filter(
    node => node.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5
        && !node.parentElement.closest('.scroll')
).map(node => node.outerHTML.slice(0, 120))"""
CONTRAST = """(() => {
    const light = text => {
        const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = node => {
        const colour = getComputedStyle(node).backgroundColor;
        return /, 0\\)$/.test(colour) ? ground(node.parentElement) : colour;
    };
    return [...document.querySelectorAll('p, h1, h2, h3, dt, dd, th, td, li, summary, strong, span.caption, text')]
        .filter(node => node.textContent.trim())
        .map(node => {
            const style = getComputedStyle(node);
            const ink = node instanceof SVGElement ? style.fill : style.color;
            const pair = [light(ink), light(ground(node))].sort((a, b) => a - b);
            return [(pair[1] + 0.05) / (pair[0] + 0.05), node.outerHTML.slice(0, 100)];
        }).sort((a, b) => a[0] - b[0])[0];
})()"""


@pytest.fixture(scope="module")
def report(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a real run, with evaluations and skipped pictures."""
    folder = tmp_path_factory.mktemp("report")
    run = folder / "run"
    run.mkdir()
    for path in finished_run.iterdir():
        (run / path.name).symlink_to(path)
    (run / "skipped.txt").unlink(missing_ok=True)
    (run / "skipped.txt").write_text(f"{HOSTILE}\ttruncated\nempty.png\tthe file is empty\n", "utf-8")
    (run / "results.jsonl").unlink(missing_ok=True)
    append_results(run / "results.jsonl", measured((PIXELS, RANDOM, LEARNED), seeds=1))
    return write_report(run, folder / "page.html")


def measured(kinds: tuple[str, ...], *, seeds: int) -> list[Result]:
    """k-NN and clusters of several kinds of features, over seeds."""
    knn = Result("knn", "", "top-1", 0.0, {}, "pictures", 64, 64)
    clusters = replace(knn, protocol="clusters", metric="Hungarian accuracy", settings={"clusters": "k-means", "k": 10})
    health = replace(knn, protocol="health", metric="label information, nats")
    found = []
    for place, kind in enumerate(kinds):
        for seed in range(seeds):
            one = {"features": kind, "seed": seed, "value": 50.0 + 10 * place + 3.3 * seed}
            found += [
                replace(knn, settings={"k": k, "temperature": 0.07, "fraction": share, "shift": shift}, **one)
                for k in (10, 200)
                for share in (1.0, 0.1)
                for shift in (0, 2)
            ]
            found += [replace(clusters, **one), replace(health, **one | {"value": 1.5 + seed / 10})]
    return found


TABLES = {
    "seeds": measured((PIXELS, RANDOM, LEARNED), seeds=3),
    "one seed": measured((PIXELS, RANDOM, LEARNED), seeds=1),
    "another method": measured((PIXELS, RANDOM, "centering", "centering, student"), seeds=2),
    "long names": measured(
        (PIXELS, RANDOM, "moco_v2_800ep_pretrain, query", "barlowtwins_resnet50_imagenet_converted"), seeds=2
    ),
}
BROKEN_WORDS = """[...document.querySelectorAll('.results :is(th, td)')].flatMap(cell => {
    const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), broken = [];
    for (let node = walker.nextNode(); node; node = walker.nextNode())
        for (const found of node.textContent.matchAll(/\\S+/g)) {
            const range = document.createRange();
            range.setStart(node, found.index);
            range.setEnd(node, found.index + found[0].length);
            if (new Set([...range.getClientRects()].map(one => Math.round(one.top))).size > 1) broken.push(found[0]);
        }
    return broken;
})"""
PRINTED_OVER = """[...document.querySelectorAll('.results :is(th, td)')].filter(
    cell => cell.scrollWidth > cell.clientWidth + 1
).map(cell => cell.textContent)"""


@pytest.mark.parametrize("width", [390, 768, 1200, 1920])
@pytest.mark.parametrize("which", TABLES)
def test_tables_are_legible(browser, which: str, width: int, tmp_path: Path) -> None:
    data = ReportData("run", "subtitle", Verdict("good", "It worked", "So it did."), results=tuple(TABLES[which]))
    page = tmp_path / "page.html"
    page.write_text(render(data), "utf-8")
    browser.open(page, width=width)
    assert browser.ask(PRINTED_OVER) == []
    assert browser.ask(BROKEN_WORDS) == []
    assert browser.ask("document.documentElement.scrollWidth") <= width
    card = browser.ask("(one => [one.scrollWidth, one.clientWidth])(document.querySelector('.scroll'))")
    if which in ("seeds", "one seed") or width > 390:  # more columns than a telephone holds are scrolled
        assert card[0] <= card[1]
    page_width = browser.ask("document.querySelector('main').getBoundingClientRect().width")
    assert browser.ask("document.querySelector('.results').getBoundingClientRect().width") > 0.7 * page_width


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page on which every text from outside tries to break out, and long words to widen it."""
    picture = Picture(thumbnail(np.zeros((8, 8, 3), np.uint8)), HOSTILE)
    data = ReportData(
        title=HOSTILE,
        subtitle=HOSTILE,
        verdict=Verdict("unclear", HOSTILE, HOSTILE),
        notice=HOSTILE,
        facts=((HOSTILE, HOSTILE),),
        charts=(Chart(HOSTILE, "", HOSTILE, HOSTILE),),
        results=tuple(
            Result(HOSTILE, kind, HOSTILE, 1.0, {HOSTILE: HOSTILE}, HOSTILE, 1, 1, note=HOSTILE)
            for kind in (HOSTILE, LEARNED, PIXELS)
        ),
        prototypes=(Strip(HOSTILE, HOSTILE, (picture,) * 8),),
        neighbours=(Strip(HOSTILE, HOSTILE, (picture,) * 8, picture),),
        sampled=HOSTILE,
        skipped=((HOSTILE, HOSTILE),) * 60,
        missing=(HOSTILE,),
        settings=((HOSTILE, HOSTILE),),
    )
    path = tmp_path_factory.mktemp("hostile") / "page.html"
    path.write_text(render(data), "utf-8")
    return path


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("which", ["report", "hostile"])
def test_opens_without_error_request_or_overflow(browser, request, which: str, width: int) -> None:
    page = request.getfixturevalue(which)
    browser.open(page, width=width)
    browser.ask("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask(OVERFLOWING) == []
    assert browser.ask("document.images.length") > 0
    assert browser.ask("[...document.images].filter(one => !one.complete || one.naturalWidth === 0).length") == 0
    assert browser.ask("[...document.images].filter(one => !one.alt).length") == 0


def test_hostile_names_stay_text(browser, hostile: Path) -> None:
    browser.open(hostile, width=1200)
    assert browser.ask("document.title") == f"{HOSTILE} · MIRA".strip()
    assert browser.ask("document.scripts.length") == 0
    assert browser.ask("document.querySelector('h1').textContent") == HOSTILE
    assert browser.ask("document.images[0].alt") == HOSTILE


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_legible_in_both_schemes(browser, report: Path, dark: bool) -> None:
    browser.open(report, width=1200, dark=dark)
    background = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 100) == dark
    lowest, where = browser.ask(CONTRAST)
    assert lowest >= 4.5, f"contrast {lowest:.2f} (WCAG AA asks for 4.5): {where}"


def test_says_what_a_reader_needs(browser, report: Path) -> None:
    browser.open(report, width=1200)
    assert browser.ask("document.title") == "run · MIRA"
    assert browser.ask("document.documentElement.lang") == "en"
    # A run of seconds: better than its baselines by the numbers above, and all images in one prototype.
    assert browser.ask("document.querySelector('.verdict').textContent").startswith("Mixed result")
    headings = browser.ask("[...document.querySelectorAll('h2')].map(one => one.textContent)")
    assert headings == [
        "What the prototypes found",
        "Nearest neighbours",
        "Evaluation",
        "Training",
        "Skipped pictures",
        "What the words mean",
        "Recipe",
    ]
    charts = browser.ask("[...document.querySelectorAll('svg')].map(one => one.getAttribute('aria-label'))")
    lines = [json.loads(line) for line in (report.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {label.partition(".")[0] for label in charts} >= {
        "Loss",
        "Label information",
        "Evenness of the prototypes",
        "Feature rank",
        "Learning rate",
        "k-NN while training",
    }
    assert f"{lines[-1]['loss']:.3g} at the end" in charts[0]
    assert browser.ask("document.querySelectorAll('.with-query').length") == 8
    assert browser.ask("document.querySelectorAll('td.best').length") == 9
    assert "3 px" not in browser.ask("document.body.textContent")
