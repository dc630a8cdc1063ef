import json
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

OVERFLOWING = """[...document.querySelectorAll('main *')].filter(
    node => node.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5
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
    append_results(
        run / "results.jsonl",
        [
            Result(
                "knn",
                kind,
                "top-1",
                value + k / 10,
                {"k": k, "temperature": 0.07, "fraction": fraction, "shift": shift},
                "pictures",
                64,
                64,
            )
            for kind, value in ((PIXELS, 60.0), (RANDOM, 50.0), (LEARNED, 80.0))
            for k in (10, 20)
            for fraction in (1.0, 0.1)
            for shift in (0, 2)
        ],
    )
    return write_report(run, folder / "page.html")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page on which every text from outside tries to break out, and long words to widen it."""
    picture = Picture(thumbnail(np.zeros((8, 8, 3), np.uint8)), HOSTILE)
    data = ReportData(
        title=HOSTILE,
        subtitle=HOSTILE,
        verdict=Verdict("unclear", HOSTILE),
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
    assert browser.ask("document.querySelector('.verdict').textContent").startswith("It worked")
    headings = browser.ask("[...document.querySelectorAll('h2')].map(one => one.textContent)")
    assert headings == [
        "What the prototypes found",
        "Nearest neighbours",
        "Evaluation and floors",
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
    assert browser.ask("document.querySelectorAll('td.best').length") == 8
    assert "3 px" not in browser.ask("document.body.textContent")
