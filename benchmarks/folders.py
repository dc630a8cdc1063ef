"""What `mira pretrain FOLDER` learns on folders that nobody has tuned it for, with nothing else said.

`python -m benchmarks.folders --photographs DIR`, DIR with Imagenette as train/<class>/*.JPEG and val/<class>/*.JPEG.
Makes the folders below --work, runs the commands that a person would type (one process per core with --jobs), keeps one
JSON line per run in --results, leaves out what is there already, and prints the table of docs/results/folders.md.
"""

import argparse
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import mira
from mira.evaluation.results import FLOORS

TEST_IMAGES = 2000
"""Of the validation photographs, drawn at random."""


def images_of(folder: Path) -> list[Path]:
    """The image files below a folder, in a fixed random order."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [files[place] for place in np.random.default_rng(0).permutation(len(files))]


def link(files: Sequence[Path], target: Path) -> None:
    """The same files in class folders of their own, as links."""
    for file in files:
        (target / file.parent.name).mkdir(parents=True, exist_ok=True)
        (target / file.parent.name / file.name).symlink_to(file.resolve())


def some(count: int) -> Callable[[Path, Path], None]:
    return lambda photographs, target: link(images_of(photographs / "train")[:count], target)


def one_kind(photographs: Path, target: Path) -> None:
    """The images of one class: there is nothing to tell apart but the images themselves."""
    link(images_of(sorted((photographs / "train").iterdir())[0])[:900], target)


def uneven(photographs: Path, target: Path) -> None:
    """Ten classes whose sizes fall from 900 to 10."""
    for place, folder in enumerate(sorted((photographs / "train").iterdir())):
        link(images_of(folder)[: round(900 * (10 / 900) ** (place / 9))], target)


def mixed(photographs: Path, target: Path) -> None:
    """Photographs as they are, long strips of them, tiny ones and gray ones, 375 each."""
    for place, file in enumerate(images_of(photographs / "train")[:1500]):
        image = Image.open(file).convert("RGB")
        width, height = image.size
        if place % 4 == 1:
            image = image.crop((0, height // 3, width, height // 3 + max(width // 8, 8)))
        elif place % 4 == 2:
            image = image.resize((24, 24 * height // width + 1))
        elif place % 4 == 3:
            image = image.convert("L")
        (target / file.parent.name).mkdir(parents=True, exist_ok=True)
        image.save(target / file.parent.name / f"{file.stem}.png")


def garments(_: Path, target: Path, split: str = "train", count: int = 3000) -> None:
    """Images of the built-in set, written as PNG."""
    source = mira.open_source("builtin:fashion", split=split, channels=1)
    assert source.labels is not None
    for index in range(count):
        folder = target / f"{source.labels[index]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.read(index)[..., 0]).save(folder / f"{index:05}.png")


FOLDERS: dict[str, Callable[[Path, Path], None]] = {
    "100 photographs": some(100),
    "300 photographs": some(300),
    "1,500 photographs": some(1500),
    "9,469 photographs": some(9469),
    "3,000 garments, 28 px": garments,
    "900 of one kind": one_kind,
    "2,236 of uneven classes": uneven,
    "1,500 long, tiny, gray": mixed,
}


def make(name: str, work: Path, photographs: Path) -> tuple[Path, Path, Path]:
    """The folder to learn from, the one whose labels k-NN may use, and the one it is tested on."""

    def made(title: str, maker: Callable[[Path], None]) -> Path:
        folder = work / "folders" / re.sub(r"\W+", "-", title)
        if not folder.is_dir():
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            maker(partial)
            partial.rename(folder)
        return folder

    folder = made(name, lambda target: FOLDERS[name](photographs, target))
    if FOLDERS[name] is garments:
        return folder, folder, made("test garments", lambda target: garments(photographs, target, "test", 2000))
    test = made("test photographs", lambda target: link(images_of(photographs / "val")[:TEST_IMAGES], target))
    # Of one kind there is nothing to classify: whether its features serve other photographs is asked of these.
    labelled = made("1,500 photographs", lambda target: some(1500)(photographs, target))
    return folder, labelled if name == "900 of one kind" else folder, test


def mira_command(words: Sequence[str], *, threads: int) -> tuple[str, float, int]:
    """What a command prints, the seconds it takes, and its exit code: 0, or 3 for a run that has stopped itself."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)} if threads else dict(os.environ)
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "mira", *words], capture_output=True, text=True, env=environment)
    if done.returncode not in (0, 3):
        raise RuntimeError(f"mira {' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stderr, time.monotonic() - started, done.returncode


def run(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One folder, one seed: pretrain, evaluate, one record."""
    folder, labelled, test = make(name, options.work, options.photographs)
    out = options.work / "runs" / f"{re.sub(r'[^0-9a-z]+', '-', name.lower())}-{options.method}-{seed}"
    threads = 1 if options.jobs > 1 else 0
    words = ["pretrain", str(folder), "--out", str(out), "--overwrite", f"training.seed={seed}"]
    words += [f"assignment.name={options.method}"] if options.method != "mira" else []
    words += ["training.workers=0"] if options.jobs > 1 else []
    said, seconds, code = mira_command(
        [*words, *(["--budget", options.budget] if options.budget else [])], threads=threads
    )
    promised = re.search(r"takes about (?:(\d+) h )?(?:(\d+) min ?)?(?:(\d+) s)?", said)
    hours, minutes, rest = (int(part or 0) for part in promised.groups()) if promised else (0, 0, 0)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    reachable, prototypes = lines[0]["label_mi_max"], mira.load_recipe(out / "recipe.yaml").model.prototypes.count
    ends = [line for line in lines if abs(line["epoch"] - round(line["epoch"])) < 1e-9]
    record: dict[str, Any] = {
        "folder": name,
        "method": options.method,
        "seed": seed,
        "budget": options.budget or "",
        "jobs": options.jobs,
        "epochs": round(lines[-1]["epoch"]),
        "minutes_promised": (3600 * hours + 60 * minutes + rest) / 60,
        "minutes_taken": seconds / 60,
        "information": [line["label_mi"] / reachable for line in (ends[0], ends[min(4, len(ends) - 1)], ends[-1])],
        "lowest_information": min(line["label_mi"] for line in ends) / reachable,
        "marginal_entropy": ends[-1]["marginal_entropy"] / math.log(prototypes),
        "mended": (out / "collapsed.jsonl").exists(),
        "collapsed": code == 3,
    }
    results = out / "results.jsonl"
    results.unlink(missing_ok=True)
    protocols = ["evaluate", "knn,logistic,health", str(out), str(labelled), "--test", str(test), "--floors"]
    mira_command([*protocols, "--results", str(results), "--k", "20", "--penalties", "9", "--quiet"], threads=threads)
    found: dict[str, list[float]] = {}
    for result in map(json.loads, results.read_text().splitlines()):
        if result["settings"].get("fraction", 1) == 1 and result["value"] is not None:
            features = result["features"] if result["features"] in FLOORS else "learned"
            key = f"{result['protocol']}, {features}"
            found.setdefault("in use" if "in use" in result["metric"] else key, []).append(result["value"])
    record["results"] = {key: statistics.mean(values) for key, values in found.items()}
    return record


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and, of several seeds, standard deviation."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row per folder, means and standard deviations over seeds."""
    heads = [
        "folder",
        "epochs",
        "mended, collapsed",
        "label information at epoch 1",
        "5",
        "end",
        "marginal entropy",
        "prototypes in use",
    ]
    for protocol in ("k-NN", "logistic"):
        heads += [f"{protocol}: {features}" for features in ("pixels", "untrained", "learned")]
    heads += ["minutes promised", "taken"]
    rows = [heads, ["---"] * len(heads)]
    for name in FOLDERS:
        own = [record for record in records if record["folder"] == name]
        if not own:
            continue
        cells = [name, spread([record["epochs"] for record in own], 0)]
        cells += [", ".join(str(sum(record[key] for record in own)) for key in ("mended", "collapsed"))]
        cells += [spread([record["information"][place] for record in own], 2) for place in range(3)]
        cells += [spread([record["marginal_entropy"] for record in own], 2)]
        cells += [spread([record["results"]["in use"] for record in own], 0)]
        for protocol in ("knn", "logistic"):
            for features in (*FLOORS, "learned"):
                cells.append(spread([record["results"][f"{protocol}, {features}"] for record in own]))
        cells += [spread([record[f"minutes_{kind}"] for record in own]) for kind in ("promised", "taken")]
        rows.append(cells)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/folders"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/folders.jsonl"))
    parser.add_argument("--folders", nargs="+", default=list(FOLDERS), choices=list(FOLDERS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--method", default="mira")
    parser.add_argument("--budget", help="as of mira pretrain; nothing for its own choice")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, with one thread each if more than one")
    options = parser.parse_args()
    kept = [json.loads(line) for line in options.results.read_text().splitlines()] if options.results.is_file() else []
    same = ("folder", "seed", "method", "budget", "jobs")
    done = {tuple(record[key] for key in same) for record in kept}
    wanted = [(name, seed) for seed in options.seeds for name in options.folders]
    for name, _ in wanted:
        make(name, options.work, options.photographs)

    def one(task: tuple[str, int]) -> None:
        name, seed = task
        if (name, seed, options.method, options.budget or "", options.jobs) in done:
            return
        record = run(name, seed, options)
        with options.results.open("a") as file:
            file.write(json.dumps(record) + "\n")
        kept.append(record)
        print(json.dumps(record), flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one, wanted))
    chosen = {"method": options.method, "jobs": options.jobs, "budget": options.budget or ""}
    print(table([record for record in kept if all(record[key] == value for key, value in chosen.items())]))


if __name__ == "__main__":
    main()
