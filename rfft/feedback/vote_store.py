"""Votes, and what they are about, in one SQLite file that any number of readers may open beside the writer.

A vote is on disk before add_vote() returns: WAL mode, and every commit is synced. Nothing is ever deleted; an
undone vote is marked.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rfft.errors import UserError
from rfft.feedback.votes import Picture, Vote

VERSION = 1
_SCHEMA = """
CREATE TABLE pictures (
    id TEXT PRIMARY KEY, path TEXT NOT NULL, product TEXT, caption TEXT NOT NULL, prompt TEXT NOT NULL,
    "group" TEXT NOT NULL, place TEXT NOT NULL, source TEXT NOT NULL, probabilities TEXT, label TEXT
);
CREATE TABLE votes (
    id INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT NOT NULL, left TEXT NOT NULL, right TEXT,
    rater TEXT NOT NULL, answer TEXT NOT NULL, note TEXT NOT NULL, x REAL, y REAL, seconds REAL,
    round INTEGER NOT NULL, kind TEXT NOT NULL, time TEXT NOT NULL, undone INTEGER NOT NULL DEFAULT 0,
    origin TEXT NOT NULL
);
CREATE UNIQUE INDEX votes_origin ON votes (origin) WHERE origin != '';
CREATE TABLE raters (name TEXT PRIMARY KEY, token TEXT UNIQUE NOT NULL);
"""
_VOTE = ("task", "left", "right", "rater", "answer", "note", "x", "y", "seconds", "round", "kind", "time")
_PICTURE = (
    "id",
    "path",
    "product",
    "caption",
    "prompt",
    "group",
    "place",
    "source",
    "probabilities",
    "label",
)


class VoteStore:
    """An open store; safe to be used by several threads."""

    def __init__(self, path: Path, create: bool = False) -> None:
        """Open a store, or make a new one; raises UserError where there is none, or another kind of file."""
        if not create and not path.is_file():
            raise UserError(f"{path}: no store of votes; `rfft review serve` makes one")
        self.path, self._lock = path, threading.RLock()
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and (new or self._is_empty()):
                self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
                path.chmod(0o600)  # raters' tokens are in it
            elif version != VERSION:
                raise UserError(
                    f"{path}: no store of votes of this version ({version}, not {VERSION}): name another"
                )
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path}: no store of votes ({error}): name another file") from None

    def _is_empty(self) -> bool:
        return self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    # ---- pictures ----

    def add_pictures(self, pictures: Iterable[Picture]) -> None:
        """Take in pictures; what was known of the same one is replaced."""
        names = ", ".join(f'"{name}"' for name in _PICTURE)
        places = ", ".join("?" * len(_PICTURE))
        with self._transaction() as db:
            db.executemany(
                f"INSERT OR REPLACE INTO pictures ({names}) VALUES ({places})",
                [_picture_row(picture) for picture in pictures],
            )

    def pictures(self) -> dict[str, Picture]:
        """Return all pictures by id, in the order in which they came."""
        names = ", ".join(f'"{name}"' for name in _PICTURE)
        with self._lock:
            found = self._db.execute(f"SELECT {names} FROM pictures ORDER BY rowid").fetchall()
        return {row[0]: _picture(dict(zip(_PICTURE, row, strict=True))) for row in found}

    # ---- votes ----

    def add_vote(self, vote: Vote) -> Vote:
        """Write a vote to disk; returns it with its number and time.

        One whose origin is known is not taken in again: its number is None then.
        """
        vote = replace(vote, time=vote.time or datetime.now(timezone.utc).isoformat(timespec="milliseconds"))
        values = {name: getattr(vote, name) for name in (*_VOTE, "origin")}
        values["answer"] = json.dumps(vote.answer, ensure_ascii=False)
        names, places = ", ".join(values), ", ".join("?" * len(values))
        with self._transaction() as db:
            done = db.execute(
                f"INSERT OR IGNORE INTO votes ({names}) VALUES ({places})", tuple(values.values())
            )
        return replace(vote, id=done.lastrowid if done.rowcount else None)

    def undo(self, number: int) -> None:
        """Mark the vote of a number as undone."""
        with self._transaction() as db:
            db.execute("UPDATE votes SET undone = 1 WHERE id = ?", (number,))

    def votes(self, task: str | None = None, undone: bool = False) -> list[Vote]:
        """Return all votes, or those of a task, in the order in which they came; undone ones if asked for."""
        names = ("id", *_VOTE, "undone", "origin")
        wanted = "(?1 IS NULL OR task = ?1) AND (?2 OR NOT undone)"
        query = f"SELECT {', '.join(names)} FROM votes WHERE {wanted} ORDER BY id"
        with self._lock:
            found = self._db.execute(query, (task, undone)).fetchall()
        return [_vote(dict(zip(names, row, strict=True))) for row in found]

    # ---- raters ----

    def add_rater(self, name: str) -> str:
        """Return the token of a rater, who is taken in if new."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO raters VALUES (?, ?)", (name, secrets.token_urlsafe(16)))
            return str(db.execute("SELECT token FROM raters WHERE name = ?", (name,)).fetchone()[0])

    def raters(self) -> dict[str, str]:
        """Return the raters' tokens by name."""
        with self._lock:
            return dict(self._db.execute("SELECT name, token FROM raters ORDER BY rowid").fetchall())


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Let no second server write to a store; raises UserError where one does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{path} is served by another process: stop it, or name another --store") from None
    try:
        yield
    finally:
        lock.release()


def _picture_row(picture: Picture) -> tuple[Any, ...]:
    values = {name: getattr(picture, name) for name in _PICTURE}
    values["path"] = str(picture.path.absolute())
    values["product"] = picture.product and str(picture.product.absolute())
    values["probabilities"] = picture.probabilities and json.dumps(picture.probabilities)
    return tuple(values.values())


def _picture(row: dict[str, Any]) -> Picture:
    probabilities = row["probabilities"] and json.loads(row["probabilities"])
    product = row["product"] and Path(row["product"])
    return Picture(**row | {"path": Path(row["path"]), "product": product, "probabilities": probabilities})


def _vote(row: dict[str, Any]) -> Vote:
    return Vote(**row | {"answer": json.loads(row["answer"]), "undone": bool(row["undone"])})
