"""Runs that are killed, signalled, started twice, out of room, or whose files were damaged."""

import io
import json
import os
import random
import shutil
import signal
import time
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from campaign import share
from harness import Command, generator, mutated
from rich.console import Console

import mira
from mira.assignment.information import max_information
from mira.evaluation.results import Result, append_results, read_results
from mira.evaluation.summary import as_csv, as_markdown, print_summary, summarise
from mira.evaluation.table import tabulate
from mira.report.curves import curves
from mira.report.facts import facts
from mira.report.verdict import judge
from mira.report.watch import frame
from mira.training.checkpoint import checkpoint_paths, newest_checkpoint
from mira.training.ended import read_ended
from mira.training.metrics import MetricsLog, read_metrics
from mira.training.run_folder import RunFolder
from mira.training.skipped import read_skipped

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(0),  # each command has a limit of its own
    pytest.mark.filterwarnings("ignore"),
]
CLOCK = ("time", "pictures_per_second", "data_wait")
ENDS = {
    0,
    2,
    71,
    75,
    129,
    130,
    131,
    143,
    -signal.SIGKILL,
    -signal.SIGQUIT,
    -signal.SIGHUP,
    -signal.SIGTERM,
    -signal.SIGINT,
    -signal.SIGUSR1,
}
"""A signal that comes before the command has begun to listen ends it as any program."""


@pytest.fixture
def recipe(tmp_path: Path, tiny_recipe: dict) -> Path:
    tiny_recipe["monitor"]["checkpoint_every"] = 0.25
    tiny_recipe["training"]["epochs"] = 4
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe))
    return path


def begin(pictures: Path, recipe: Path, run: Path, *more: str) -> list[str]:
    return ["pretrain", str(pictures), "--recipe", str(recipe), "--out", str(run), "--quiet", *more]


def assert_whole(run: Path, like: Path) -> None:
    """The same bits, and every step's metrics once, as in a run that nobody disturbed."""
    one, other = newest_checkpoint(run / "checkpoints"), newest_checkpoint(like / "checkpoints")
    assert one is not None
    assert other is not None
    assert one.step == other.step
    assert all(torch.equal(value, other.model[name]) for name, value in one.model.items())
    seen, expected = (
        [{k: v for k, v in line.items() if k not in CLOCK} for line in read_metrics(folder / "metrics.jsonl")]
        for folder in (run, like)
    )
    assert seen == expected
    assert not list(run.rglob(".*"))
    ended = read_ended(run / "ended.json")
    assert ended is not None
    assert ended.how == "finished"


def test_of_two_runs_started_at_once_exactly_one_goes_on(picture_folder: Path, recipe: Path, tmp_path: Path) -> None:
    rng = generator("two at once")
    for number in range(share(20)):
        run = tmp_path / f"run{number}"
        seeds = ("training.epochs=2", "training.seed=0"), ("training.epochs=2", "training.seed=1")
        both = []
        for seed in seeds:
            both.append(Command(begin(picture_folder, recipe, run, *seed), tmp_path / f"log{len(both)}-{number}"))
            time.sleep(rng.choice([0, 0, 0.05, 0.5]))
        outcomes = [command.end() for command in both]
        assert sorted(outcome.code for outcome in outcomes) == [0, 2], outcomes
        winner = [outcome.code for outcome in outcomes].index(0)
        checkpoint = newest_checkpoint(run / "checkpoints")
        assert checkpoint is not None
        assert checkpoint.recipe.training.seed == winner
        assert mira.load_recipe(run / "recipe.yaml").training.seed == winner
        assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == list(range(1, 9))


def test_what_begins_beside_a_run_that_goes_on_does_not_disturb_it(
    picture_folder: Path, recipe: Path, tmp_path: Path
) -> None:
    rng = generator("beside")
    whole = mira.pretrain(picture_folder, out=tmp_path / "whole", recipe=recipe, quiet=True)
    for number in range(share(4)):
        run = tmp_path / f"run{number}"
        first = Command(begin(picture_folder, recipe, run), tmp_path / f"log{number}")
        while not checkpoint_paths(run / "checkpoints") and first.running():
            time.sleep(0.01)
        how = rng.choice([["pretrain", "--resume", str(run)], begin(picture_folder, recipe, run, "--overwrite")])
        second = Command(how, tmp_path / f"second{number}").end()
        assert first.end().code == 0
        assert second.code == 2 or not first.running()
        assert_whole(run, whole)


def test_whatever_ends_a_run_it_goes_on_to_the_same_bits(picture_folder: Path, recipe: Path, tmp_path: Path) -> None:
    rng = generator("ends")
    whole = mira.pretrain(picture_folder, out=tmp_path / "whole", recipe=recipe, quiet=True)
    left = share(12)
    number = 0
    while left:
        run, log = tmp_path / f"run{number}", tmp_path / f"log{number}"
        workers = rng.choice([0, 1, 2])
        command = Command(begin(picture_folder, recipe, run, f"training.workers={workers}"), log)
        for _ in range(min(left, rng.randint(1, 4))):
            left -= 1
            time.sleep(rng.uniform(0, 2.5))
            _disturb(rng, command)
            outcome = command.end()
            assert outcome.code in ENDS, outcome
            more = [] if (run / "recipe.yaml").exists() else None
            again = begin(picture_folder, recipe, run, "--or-resume", f"training.workers={rng.choice([0, 1])}")
            command = Command(["pretrain", "--resume", str(run), "--quiet"] if more == [] else again, log)
        outcome = command.end()
        if outcome.code == 2 and "are gone" in outcome.printed:
            raise AssertionError(outcome)
        assert outcome.code == 0, outcome
        assert_whole(run, whole)
        shutil.rmtree(run)
        number += 1


def _disturb(rng: random.Random, command: Command) -> None:
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGKILL]
    match rng.randrange(4):
        case 0:
            command.send(signal.SIGKILL, group=True)
        case 1 if command.workers():
            os.kill(rng.choice(command.workers()), signal.SIGKILL)
            time.sleep(0.05)
        case 2:
            for _ in range(rng.randint(1, 3)):
                command.send(rng.choice(numbers), group=rng.random() < 0.5)
                time.sleep(rng.choice([0, 0.3]))
        case _:
            command.send(rng.choice(numbers))


def test_a_disk_without_room_is_a_sentence_and_the_run_goes_on_when_there_is_some(
    picture_folder: Path, recipe: Path, tmp_path: Path
) -> None:
    rng = generator("room")
    whole = mira.pretrain(picture_folder, out=tmp_path / "whole", recipe=recipe, quiet=True)
    largest = max(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    for number in range(share(8)):
        run = tmp_path / f"run{number}"
        limit = rng.choice([rng.randrange(1, largest), rng.randrange(largest // 2, largest + 100)])
        log = tmp_path / f"log{number}"
        outcome = Command(begin(picture_folder, recipe, run, "monitor.boards=auto"), log, file_size=limit).end()
        assert outcome.code in (0, 2), (limit, outcome)
        assert outcome.code == 0 or "mira: " in outcome.printed, (limit, outcome)
        if not (run / "recipe.yaml").exists():
            assert not run.exists(), list(run.iterdir())
            continue
        assert Command(["pretrain", "--resume", str(run), "--quiet"], log).end().code == 0
        assert_whole(run, whole)


RESULTS = [
    Result("knn", kind, "top-1", value, {"k": 20, "fraction": share}, "d", 100, 200, checkpoint="a/b at step 3")
    for kind in ("MIRA", "raw pixels")
    for share, value in ((1.0, 70.5), (0.1, 60.25))
] + [
    Result("clusters", "MIRA", "NMI", 50.0, {"clusters": "k-means", "k": 10}, "d", 0, 200),
    Result("health", "MIRA", "RankMe", 9.5, {}, "d", 0, 200),
    Result("linear", "MIRA", "top-1", 9.5, {"epochs": 3}, "d", 9, 200, chosen={"rate": 0.1}),
    Result("semi-supervised", "MIRA", "top-1", 9.5, {"fraction": 0.1, "epochs": 3}, "d", 9, 200),
]


def test_damaged_side_files_never_end_what_reads_them(finished_run: Path, tmp_path: Path) -> None:
    rng = generator("side files")
    run = RunFolder(Path(shutil.copytree(finished_run, tmp_path / "run")))
    recipe = mira.load_recipe(run.recipe)
    append_results(tmp_path / "results", RESULTS)
    good = {
        run.metrics: run.metrics.read_bytes(),
        run.results: (tmp_path / "results").read_bytes(),
        run.skipped: "a/ü.jpg\tdamaged\nb.png\tempty\n".encode(),
        run.ended: run.ended.read_bytes(),
    }
    for number in range(share(2000)):
        for path, content in good.items():
            path.write_bytes(mutated(rng, content) if rng.random() < 0.7 else _retyped(rng, content))
        try:
            _read_all(run, recipe)
        except Exception as error:
            kept = tmp_path / f"failed{number}"
            shutil.copytree(run.path, kept, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
            raise AssertionError(f"try {number}: {kept}") from error


def _retyped(rng: random.Random, content: bytes) -> bytes:
    """Lines of JSON that are whole, but hold other kinds of values."""
    odd = [None, True, -1, 10**400, 1e999, float("nan"), "x", [], {}, [[]], {"a": {}}, "[bold]", "\x1b[31m", 1e300]
    lines = []
    for line in content.decode("utf-8", "replace").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if rng.random() < 0.3 and isinstance(values, dict):
            for name in rng.sample(sorted(values), min(len(values), rng.randint(1, 3))):
                inner = values[name]
                if isinstance(inner, dict) and inner and rng.random() < 0.5:
                    inner[rng.choice(sorted(inner))] = rng.choice(odd)
                elif rng.random() < 0.3:
                    del values[name]
                else:
                    values[name] = rng.choice(odd)
        lines.append(json.dumps(values))
    return ("\n".join(lines) + "\n").encode()


def _read_all(run: RunFolder, recipe: mira.Recipe) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metrics, results = read_metrics(run.metrics), read_results(run.results)
        prototypes, batch = recipe.model.prototypes.count, recipe.training.batch_size
        curves(metrics, prototypes=prototypes, batch_size=batch)
        facts(recipe, metrics, None, len(read_skipped(run.skipped)))
        judge(metrics, results, reachable=max_information(prototypes, batch))
        Console(file=io.StringIO(), width=100).print(frame(run, recipe))
        tabulate(results)
        summary = summarise(results)
        as_csv(summary)
        as_markdown(summary)
        print_summary(summary, Console(file=io.StringIO(), width=100))
        MetricsLog(run.metrics, step=5).close()
        assert all(line["step"] <= 5 for line in read_metrics(run.metrics))
