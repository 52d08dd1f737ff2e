"""`rfft data prepare-rf1m`: a data set in RF1M's form becomes shards that training reads in one stream.

The source is listed once, into OUT/.work/index.sqlite; a shard is a fixed range of its rows, so that whoever
writes it, and whenever, writes the same. It is written aside, renamed, and then entered into the manifest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rfft.errors import UserError
from rfft.feedback.rf1m_index import Index, build_index
from rfft.feedback.shard_format import BROKEN, MANIFEST, Manifest, Shard, read_manifest
from rfft.feedback.shard_writer import MapMaker, Problem, write_shard
from rfft.feedback.sources import Source
from rfft.utils.atomic_io import new_file, refuse_existing
from rfft.utils.log import messages

WORK, INDEX = ".work", "index.sqlite"


@dataclass(frozen=True)
class Settings:
    """What decides the shards' contents."""

    size: int | None = None  # side of the squares that pictures become; None: as they are
    raw: bool = False  # uint8 arrays instead of JPEG and PNG
    shard_size: int = 1000  # samples
    depth: str = "rf-tiny-depth"  # networks for the maps that the source does not have
    saliency: str = "rf-tiny-saliency"
    known_maps: bool = True  # keep the source's own maps; False: compute all of them


@dataclass(frozen=True)
class Job:
    """Everything a worker needs for one shard."""

    source: Path
    out: Path
    number: int
    settings: Settings


def prepare(source: Path, out: Path, settings: Settings, workers: int) -> Manifest:
    """Write the shards of a data set in RF1M's form into the folder `out`, or those that are missing there.

    `workers` is the number of processes; with 1 it happens in this one. Returns the finished manifest; raises
    UserError if `out` was begun with other settings, or if the source has no usable sample.
    """
    console = messages()
    if settings.raw and not settings.size:
        raise UserError("--raw needs --size: arrays of one shape")
    manifest = _begin(source, out, settings, console)
    jobs = [
        Job(source, out, number, settings)
        for number in range(manifest.planned)
        if number not in manifest.shards
    ]
    with _progress(console, manifest) as progress:
        for number, shard, problems in _run(jobs, workers):
            _enter(out, manifest, number, shard, problems)
            progress.update(progress.task_ids[0], completed=len(manifest.shards), **_counts(manifest))
    shutil.rmtree(out / WORK, ignore_errors=True)
    left_out = ", ".join(f"{count} {reason}" for reason, count in manifest.all_left_out().items())
    size = sum(shard.bytes for shard in manifest.shards.values()) / 1e6
    console.print(
        f"{manifest.samples} samples in {manifest.planned} shards ({size:.1f} MB); left out: {left_out}"
        f"{f' (see {out / BROKEN})' if manifest.all_left_out()['broken'] else ''}; written: {out}",
        highlight=False,
        soft_wrap=True,
    )
    return manifest


def _begin(source: Path, out: Path, settings: Settings, console: Console) -> Manifest:
    """Return the manifest so far, which is read, or begun with an index of the source."""
    wanted = {"source": str(source.resolve()), **asdict(settings)}
    if (out / MANIFEST).exists():
        manifest = read_manifest(out)
        for name, value in wanted.items():
            if manifest.settings.get(name) != value:
                raise UserError(
                    f"{out}: begun with {name}={manifest.settings.get(name)}, now {value}; name a new folder"
                )
        _drop_unfinished(out, manifest)
        return manifest
    if not (out / WORK).is_dir():
        refuse_existing(out, "name a new one")
    files = Source(source)
    MapMaker.check(settings.depth, settings.saliency)
    new = not out.exists()
    (out / WORK).mkdir(parents=True, exist_ok=True)
    try:
        with console.status("listing") as status:
            build_index(files, out / WORK / INDEX, lambda number: status.update(f"listing: {number} files"))
    except UserError:
        shutil.rmtree(out if new else out / WORK)
        raise
    index = Index(out / WORK / INDEX)
    manifest = Manifest(wanted, -(-len(index) // settings.shard_size), index.left_out())
    with (out / BROKEN).open("w", encoding="utf-8") as file:
        for name, reason in index.problems():
            file.write(json.dumps({"name": name, "reason": reason}, ensure_ascii=False) + "\n")
    manifest.save(out)
    return manifest


def _drop_unfinished(out: Path, manifest: Manifest) -> None:
    """Remove what a stopped run left: drafts, and lines about shards that are not in the manifest."""
    for number, shard in list(manifest.shards.items()):
        file = out / shard.file
        if not file.is_file() or file.stat().st_size != shard.bytes:
            del manifest.shards[number]  # lost or damaged since: it is written again
    if not manifest.complete and not (out / WORK / INDEX).is_file():
        raise UserError(f"{out}: shards are missing, and so is {WORK}/{INDEX}; prepare into a new folder")
    for leftover in out.glob(".*.part"):
        leftover.unlink()
    known = {None, *manifest.shards}  # None: a label line that led nowhere
    with (out / BROKEN).open("rb") as old, new_file(out / BROKEN) as new:
        for line in old:
            if line.endswith(b"\n") and json.loads(line).get("shard") in known:
                new.write(line)


def _enter(out: Path, manifest: Manifest, number: int, shard: Shard, problems: list[Problem]) -> None:
    with (out / BROKEN).open("a", encoding="utf-8") as file:
        for problem in problems:
            file.write(json.dumps({**asdict(problem), "shard": number}, ensure_ascii=False) + "\n")
    manifest.shards[number] = shard
    manifest.save(out)


def _run(jobs: list[Job], workers: int) -> Iterator[tuple[int, Shard, list[Problem]]]:
    """Yield number, shard and problems of each job as it is done, in any order."""
    if workers == 1 or len(jobs) < 2:
        yield from map(write_job, jobs)
        return
    with ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn"), _single_threaded) as pool:
        futures = [pool.submit(write_job, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process was ended from outside (out of memory?); the same command goes on where it "
                "stopped, --workers 1 takes the least memory"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _single_threaded() -> None:
    """Leave one core to each worker, of which there are as many as cores."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def write_job(job: Job) -> tuple[int, Shard, list[Problem]]:
    """Write one shard, in whatever process; returns its number, what is in it and what was left out."""
    settings = job.settings
    start = job.number * settings.shard_size
    rows = Index(job.out / WORK / INDEX).rows(start, start + settings.shard_size)
    if not settings.known_maps:
        rows = (replace(row, maps={}) for row in rows)
    source, maps = _opened(job.source), _networks(settings.depth, settings.saliency)
    path = job.out / f"shard-{job.number:06}.tar"
    shard, problems = write_shard(path, rows, source, maps, settings.size, settings.raw)
    return job.number, shard, problems


@cache
def _opened(source: Path) -> Source:
    return Source(source)


@cache
def _networks(depth: str, saliency: str) -> MapMaker:
    return MapMaker(depth, saliency)


def _counts(manifest: Manifest) -> dict[str, Any]:
    return {"samples": manifest.samples, "broken": manifest.all_left_out()["broken"]}


@contextmanager
def _progress(console: Console, manifest: Manifest) -> Iterator[Progress]:
    columns = ("shards", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[samples]} samples"))
    rest = (TextColumn("{task.fields[broken]} broken"), TimeRemainingColumn())
    with Progress(*columns, *rest, console=console) as progress:
        progress.add_task("", total=manifest.planned, completed=len(manifest.shards), **_counts(manifest))
        yield progress
