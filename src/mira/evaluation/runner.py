"""Run protocols on a backbone and its floors, over seeds, keeping every result as soon as it is there."""

import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mira.data import PictureSource
from mira.evaluation.digest import source_digest
from mira.evaluation.floors import raw_pixels, untrained
from mira.evaluation.protocols import Protocol
from mira.evaluation.results import LEARNED_FROM, PIXELS, RANDOM, Result
from mira.evaluation.subject import Compute, Score, Subject
from mira.settings import Settings
from mira.versions import versions

Keep = Callable[[Sequence[Result]], None]


def run_protocols(
    subject: Subject,
    pictures: tuple[Any, ...],
    protocols: Mapping[Protocol, Settings],
    *,
    seeds: Sequence[int] = (0,),
    floors: bool = False,
    compute: Compute,
    keep: Keep = lambda results: None,
    finished: Mapping[str, Sequence[Result]] = MappingProxyType({}),
    state: Path | None = None,
) -> list[Result]:
    """Every protocol on the subject, and on its floors, once for each seed.

    Args:
        subject: the backbone.
        pictures: what the protocols' `open` gives: most take pictures to learn from and pictures to measure on.
        protocols: with the settings of each.
        seeds: each draws label subsets, starts and the random backbone anew.
        floors: also raw pixels, and a random backbone where the subject says how to build one.
        compute: device, precision and cache.
        keep: called with the results of each call of a protocol as soon as they are there, if one has a value.
        finished: results of earlier calls by their task (`Result.task`); these calls are not made again.
        state: a folder in which long protocols keep how far they are, so that a stopped call goes on there when it
            is made again; it is gone when all are done.

    Returns:
        All results, those of earlier calls in their place.

    Raises:
        ValueError: what the protocols raise; what was finished before is kept.
    """
    results: list[Result] = []
    beside = _floors(subject, pictures, protocols, seeds, compute) if floors else ()
    for one, its_seeds in chain(beside, [(subject, seeds)]):
        for protocol, settings in protocols.items():
            for seed in its_seeds:
                parts: list[Result] = []
                for part in protocol.load().parts(settings):
                    task = task_digest(protocol, part, one, pictures, seed, compute.precision)
                    if task in finished:
                        parts += finished[task]
                        continue
                    folder = None if state is None else state / task
                    new = _run(one, pictures, protocol, part, seed, compute, folder)
                    # Named by the data as they are now: a call may have brought them itself (`transfer --download`).
                    task = task_digest(protocol, part, one, pictures, seed, compute.precision)
                    new = [replace(result, task=task) for result in new]
                    if any(result.value is not None for result in new):
                        keep(new)
                    parts += new
                    if folder is not None:
                        shutil.rmtree(folder, ignore_errors=True)
                results += parts
                if whole := _whole(protocol, parts):
                    if whole.task not in finished:
                        keep([whole])
                    results.append(whole)
    if state is not None and state.is_dir() and not any(state.iterdir()):
        state.rmdir()
    return results


def task_digest(
    protocol: Protocol, settings: Settings, subject: Subject, pictures: tuple[Any, ...], seed: int, precision: str
) -> str:
    """A name for one call of a protocol: the same only where everything that decides its results is the same."""
    parts = [
        protocol.name,
        settings.model_dump_json(),
        subject.name,
        subject.weights,
        subject.head,
        repr(subject.preprocessing),
        *map(_named, pictures),
        str(seed),
        precision,
        versions()["mira-ssl"],
        *protocol.load().depends(settings, *pictures),
    ]
    return _digest(parts)


def _digest(parts: Iterable[str]) -> str:
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _named(pictures: Any) -> str:
    if not isinstance(pictures, PictureSource):
        return str(Path(str(pictures)).resolve())  # a folder of data sets
    labels = b"" if pictures.labels is None else pictures.labels.tobytes()
    named = hashlib.blake2b(labels + repr(pictures.classes).encode(), digest_size=8).hexdigest()
    return f"{source_digest(pictures) or pictures.name} {len(pictures)} {named}"


def _floors(
    subject: Subject,
    pictures: tuple[Any, ...],
    protocols: Iterable[Protocol],
    seeds: Sequence[int],
    compute: Compute,
) -> Iterator[tuple[Subject, Sequence[int]]]:
    """One at a time, so that only one backbone's features are in memory; a random backbone has a seed of its own."""
    if all(protocol.load().pixels for protocol in protocols):
        train = pictures[0] if isinstance(pictures[0], PictureSource) else None
        yield raw_pixels(train, subject.preprocessing, compute), seeds
    else:
        warnings.warn(f"no {PIXELS} beside {subject.name}: a detector is trained from a network", stacklevel=2)
    for seed in seeds:
        floor = untrained(subject, seed=seed)
        if floor is not None:
            yield floor, [seed]
    if subject.untrained is None:
        warnings.warn(f"no {RANDOM} beside {subject.name}: how to build its architecture is unknown", stacklevel=2)


def _run(
    subject: Subject,
    pictures: tuple[Any, ...],
    protocol: Protocol,
    settings: Settings,
    seed: int,
    compute: Compute,
    folder: Path | None,
) -> list[Result]:
    """One call of a protocol, as results that do not have the name of their task yet."""
    loaded = protocol.load()
    more = {"folder": folder} if loaded.resumable else {}
    compute = replace(compute, unreadable=set())
    begin = time.perf_counter()
    scores: list[Score] = loaded.evaluate(subject, *pictures, settings, seed=seed, compute=compute, **more)
    seconds = round(time.perf_counter() - begin, 3)
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    return [
        Result(
            protocol=protocol.name,
            features=subject.name,
            metric=score.metric,
            value=score.value,
            settings=_plain(score.settings),
            chosen=_plain(score.chosen),
            data=_data(pictures, score.train_size),
            train_size=score.train_size,
            test_size=score.test_size,
            unreadable=len(compute.unreadable),
            seed=seed,
            checkpoint=subject.checkpoint,
            checkpoint_hash=subject.weights,
            preprocessing=_plain(asdict(score.preprocessing or subject.preprocessing)),
            precision=compute.precision,
            versions=versions(),
            seconds=seconds,
            time=ended,
            note=score.note,
            pretraining=_plain(subject.pretraining),
        )
        for score in scores
    ]


def _whole(protocol: Protocol, parts: Sequence[Result]) -> Result | None:
    """What the parts of a call give together, as a result that is called by all of theirs."""
    whole = protocol.load().whole
    if whole is None:
        return None
    score = whole(parts)
    return replace(
        next(part for part in parts if part.value is not None),
        metric=score.metric,
        value=score.value,
        settings=_plain(score.settings),
        chosen={},
        train_size=score.train_size,
        test_size=score.test_size,
        unreadable=sum(part.unreadable for part in parts),
        task=_digest(part.task for part in parts),
        seconds=sum(part.seconds or 0.0 for part in parts),
        time=max(part.time for part in parts),
        note=score.note,
    )


def _data(pictures: tuple[Any, ...], train_size: int) -> str:
    """The name of what was measured on and, where labels of another source were learned from, of that one."""
    first, last = (one.name if isinstance(one, PictureSource) else str(one) for one in (pictures[0], pictures[-1]))
    labelled = train_size > 0 and isinstance(pictures[0], PictureSource) and pictures[0].labels is not None
    return f"{last}{LEARNED_FROM}{first}" if labelled and first != last else last


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As they will be read back from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(values)))
    return plain
