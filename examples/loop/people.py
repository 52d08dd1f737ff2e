"""Raters at work: they open the links that `rfft review serve` prints, and answer until nothing is asked."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from raters import Look, Rater

LINK = re.compile(r"^(\S+): (http://\S+)\s*$")
TIMEOUT = 60.0  # seconds


def vote(sources: Sequence[Path], store: Path, task: str, raters: Sequence[Rater]) -> int:
    """Have all raters answer all questions about the pictures of some folders; returns how many were new."""
    with _server(sources, store, task, raters) as links, ThreadPoolExecutor(len(raters)) as pool:
        return sum(pool.map(lambda rater: _answer_all(links[rater.name], task, rater), raters))


@contextmanager
def _server(
    sources: Sequence[Path], store: Path, task: str, raters: Sequence[Rater]
) -> Iterator[dict[str, str]]:
    """Run `rfft review serve` on a free port; gives each rater's link."""
    names = ",".join(rater.name for rater in raters)
    options = "--store", store, "--task", task, "--raters", names, "--port", "0"
    command = [sys.executable, "-m", "rfft", "review", "serve", *sources, *options]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        try:
            yield _links(process, len(raters))
        finally:
            process.send_signal(signal.SIGINT)


def _links(process: subprocess.Popen[str], count: int) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in process.stdout or ():
        if match := LINK.match(line):
            found[match[1]] = match[2]
        if len(found) == count:
            return found
    raise SystemExit("rfft review serve ended before it gave its links")


def _answer_all(link: str, task: str, rater: Rater) -> int:
    with httpx.Client(base_url=link.partition("/?")[0], timeout=TIMEOUT, follow_redirects=True) as client:
        client.get(link).raise_for_status()
        asked, count = _json(client.get("/api/question")), 0
        while asked["question"] is not None:
            asked, count = (
                _json(client.post("/api/vote", json=_answer(client, task, rater, asked))),
                count + 1,
            )
        return count


def _answer(client: httpx.Client, task: str, rater: Rater, asked: dict[str, Any]) -> dict[str, Any]:
    question = asked["question"]
    product = client.get(f"/product/{question['product']}").raise_for_status().content
    looks = [
        Look(client.get(f"/picture/{id}").raise_for_status().content, product, question["caption"])
        for id in question["pictures"]
    ]
    answer = rater.label(looks[0]) if task == "labels" else rater.compare(*looks)
    left, *right = question["pictures"]
    return {"left": left, "right": right[0] if right else None, "answer": answer, "seconds": 1.0}


def _json(response: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = response.raise_for_status().json()
    return found
