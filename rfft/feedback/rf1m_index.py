"""What a data set in RF1M's form holds, gathered into an SQLite file: a million samples in constant memory.

The label files, wherever they lie, say which samples there are; every picture is found by its name, and what
it is by the words of the folders and of the archive around it, innermost first (`ROLES`). Outside of such
folders a JPEG is the generated picture, and a PNG of the same name its product.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rfft.errors import UserError
from rfft.feedback.folder import class_of
from rfft.feedback.sources import Entry, Source

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
ROLES = {  # in this order: "rgba_images" holds products
    "product": {"rgba", "product", "products", "cutout", "cutouts"},
    "depth": {"depth"},
    "saliency": {"saliency"},
    "image": {"image", "images", "img", "imgs", "picture", "pictures"},
}
MAPS = ("depth", "saliency")
MADE = "made-(depth|saliency)-"  # folders of maps that training made (data/maps.py): left alone

_SCHEMA = """
CREATE TABLE file(id INTEGER PRIMARY KEY, role TEXT, stem TEXT, archive TEXT, member TEXT, size INT,
                  UNIQUE(role, stem));
CREATE TABLE record(stem TEXT PRIMARY KEY, name TEXT, label INT, caption TEXT, mix INT);
CREATE TABLE caption(stem TEXT PRIMARY KEY, text TEXT);
CREATE TABLE prompt(stem TEXT PRIMARY KEY, text TEXT);
CREATE TABLE problem(name TEXT, reason TEXT);
CREATE TABLE tally(reason TEXT PRIMARY KEY, count INT);
"""
# A PNG outside of any named folder is the product where the picture is there besides, else the picture.
_JOINED = """
CREATE TEMP TABLE joined AS
SELECT r.name, r.label, r.mix, COALESCE(c.text, NULLIF(r.caption, '')) AS caption,
       COALESCE(p.text, '') AS prompt, d.id AS depth, s.id AS saliency, COALESCE(i.id, g.id) AS image,
       COALESCE(o.id, CASE WHEN i.id IS NOT NULL THEN g.id END) AS product
FROM record r LEFT JOIN caption c USING (stem) LEFT JOIN prompt p USING (stem)
LEFT JOIN file i ON i.role = 'image' AND i.stem = r.stem
LEFT JOIN file g ON g.role = 'png' AND g.stem = r.stem
LEFT JOIN file o ON o.role = 'product' AND o.stem = r.stem
LEFT JOIN file d ON d.role = 'depth' AND d.stem = r.stem
LEFT JOIN file s ON s.role = 'saliency' AND s.stem = r.stem
WHERE r.label IS NOT NULL
"""
# Archive by archive, so that few are open at a time; shuffled within each.
_ROWS = """
INSERT INTO problem SELECT name, 'no picture of this name' FROM joined WHERE image IS NULL;
INSERT INTO problem SELECT name, 'no caption' FROM joined WHERE image IS NOT NULL AND caption IS NULL;
INSERT INTO tally SELECT 'unsuitable', COUNT(*) FROM record WHERE label IS NULL;
INSERT INTO tally SELECT 'no_product', COUNT(*) FROM joined
    WHERE image IS NOT NULL AND caption IS NOT NULL AND product IS NULL;
INSERT INTO tally SELECT 'broken', COUNT(*) FROM problem;
CREATE TABLE sample AS SELECT joined.* FROM joined JOIN file ON file.id = image
    WHERE product IS NOT NULL AND caption IS NOT NULL ORDER BY file.archive, mix, name;
"""
_SELECT = "SELECT name, label, caption, prompt, " + ", ".join(
    f"{kind}.archive, {kind}.member, {kind}.size" for kind in ("i", "o", "d", "s")
)


@dataclass(frozen=True)
class IndexRow:
    """A sample, and where its pictures lie."""

    name: str
    label: int  # class, an index into LABELS
    caption: str
    prompt: str
    image: Entry
    product: Entry
    maps: dict[str, Entry]  # of MAPS, those that are known


class Index:
    """The finished index, opened to be read."""

    def __init__(self, file: Path) -> None:
        self._db = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)

    def __len__(self) -> int:
        """Return the number of samples that have a suitable label, a caption, a picture and a product."""
        return int(self._db.execute("SELECT COUNT(*) FROM sample").fetchone()[0])

    def left_out(self) -> dict[str, int]:
        """Return how many samples were left out, by reason."""
        return dict(self._db.execute("SELECT reason, count FROM tally"))

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield name and reason of every label line that leads nowhere."""
        yield from self._db.execute("SELECT name, reason FROM problem")

    def rows(self, start: int, stop: int) -> Iterator[IndexRow]:
        """Yield the samples from number `start` to `stop` - 1, in a fixed order."""
        query = f"""{_SELECT} FROM sample
            JOIN file i ON i.id = image JOIN file o ON o.id = product
            LEFT JOIN file d ON d.id = depth LEFT JOIN file s ON s.id = saliency
            WHERE sample.rowid > ? AND sample.rowid <= ? ORDER BY sample.rowid"""
        for name, label, caption, prompt, *places in self._db.execute(query, (start, stop)):
            image, product, *maps = (
                Entry(*places[i : i + 3]) if places[i] is not None else None for i in range(0, 12, 3)
            )
            assert image and product  # as the join says
            known = {kind: entry for kind, entry in zip(MAPS, maps, strict=True) if entry}
            yield IndexRow(name, label, caption, prompt, image, product, known)


def build_index(source: Source, file: Path, listed: Callable[[int], object]) -> None:
    """Write the index of a source into a file, all or nothing.

    `listed` is called now and then with the number of files listed. Raises UserError if no sample is usable.
    """
    draft = file.with_name(f"{file.name}.part")
    draft.unlink(missing_ok=True)
    db = sqlite3.connect(draft)
    db.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + _SCHEMA)
    texts = _add_files(db, source, listed)
    for entry in texts:
        _TEXTS[PurePosixPath(entry.member).name.lower()](db, source, entry)
    db.executescript(_JOINED + ";" + _ROWS)
    usable = db.execute("SELECT COUNT(*) FROM sample").fetchone()[0]
    reason = db.execute("SELECT name || ': ' || reason FROM problem LIMIT 1").fetchone()
    db.commit()
    db.close()
    if not usable:
        why = reason[0] if reason else "a label, a caption, a picture and its RGBA product are needed"
        raise UserError(f"{source.path}: no usable sample; {why}")
    draft.replace(file)


def _add_files(db: sqlite3.Connection, source: Source, listed: Callable[[int], object]) -> list[Entry]:
    """Put all pictures into the table `file`; returns the text files among the entries."""
    texts = []
    for number, entry in enumerate(source.entries()):
        path = PurePosixPath(entry.member)
        if shown := _unreadable_name(entry):
            db.execute("INSERT INTO problem VALUES (?, 'its name is not UTF-8')", (shown,))
        elif path.suffix.lower() in PICTURES:
            if not any(re.match(MADE, folder) for folder in path.parts):
                _add_picture(db, source, entry)
        elif path.name.lower() in _TEXTS:
            texts.append(entry)
        if number % 1000 == 0:
            listed(number)
    if not any("label" in PurePosixPath(entry.member).name.lower() for entry in texts):
        raise UserError(f"{source.path}: no label.txt in it, nor in a zip archive in it")
    return texts


def _unreadable_name(entry: Entry) -> str:
    """Return a name that is not UTF-8, and so not in any label file, fit to be shown; else ""."""
    shown = str(entry).encode("utf-8", "backslashreplace").decode()
    return "" if shown == str(entry) else shown


def _add_picture(db: sqlite3.Connection, source: Source, entry: Entry) -> None:
    """Add a picture to the table `file`.

    A copy (same role, name and size: packages overlap) is passed over; two different ones are an error.
    """
    role, stem = role_of(entry), PurePosixPath(entry.member).stem
    values = (role, stem, entry.archive, entry.member, entry.size)
    if db.execute("INSERT OR IGNORE INTO file VALUES (NULL, ?, ?, ?, ?, ?)", values).rowcount:
        return
    query = "SELECT archive, member, size FROM file WHERE role = ? AND stem = ?"
    archive, member, size = db.execute(query, (role, stem)).fetchone()
    if size != entry.size:
        other = Entry(archive, member, size)
        raise UserError(
            f"{source.path}: two different files for {role} {stem!r}: {other} and {entry}; "
            "prepare them apart, or take one away"
        )


def role_of(entry: Entry) -> str:
    """Return image, product, depth or saliency, or "png" for one that may be image or product."""
    path = PurePosixPath(entry.path)
    for folder in path.parent.parts[::-1]:
        words = set(re.findall("[a-z]+", folder.lower()))
        for role, known in ROLES.items():
            if words & known:
                return role
    return "png" if path.suffix.lower() == ".png" else "image"


def split_label(line: str, place: str) -> tuple[str, str, str]:
    """Return the name, the label as written and the caption ("" if there is none) of a line of a label file.

    Tabs stand between them, or else commas or spaces. Raises UserError, with `place`, for any other line.
    """
    if "\t" in line:
        columns = [column.strip() for column in line.split("\t")]
    else:
        found = re.fullmatch(r"(\S+?)[\s,]+(\w+)(?:[\s,]+(.*))?", line.strip())
        columns = [column or "" for column in found.groups()] if found else []
    if not 2 <= len(columns) <= 3 or not PurePosixPath(columns[0]).name:
        raise UserError(f"{place}: expected name, label and caption, separated by tabs")
    name, code, caption = (*columns, "")[:3]
    return PurePosixPath(name).name, code, caption


def _add_labels(db: sqlite3.Connection, source: Source, entry: Entry) -> None:
    for number, line in source.lines(entry):
        try:
            name, code, caption = split_label(line, f"{entry}:{number}")
            label = class_of(code, f"{entry}:{number}")
        except UserError as error:
            db.execute("INSERT INTO problem VALUES (?, ?)", (line[:200], str(error)))
            continue
        stem = PurePosixPath(name).stem
        mix = int.from_bytes(hashlib.blake2b(stem.encode(), digest_size=7).digest(), "big")
        values = (stem, name, label, caption, mix)
        if not db.execute("INSERT OR IGNORE INTO record VALUES (?, ?, ?, ?, ?)", values).rowcount:
            db.execute("INSERT INTO problem VALUES (?, ?)", (name, f"{entry}:{number}: {name} occurs twice"))


def _add_captions(db: sqlite3.Connection, source: Source, entry: Entry) -> None:
    for number, line in source.lines(entry):
        name, tab, caption = line.partition("\t") if "\t" in line else line.partition(" ")
        if not tab or not caption.strip():
            raise UserError(f"{entry}:{number}: expected a name and a caption, separated by a tab")
        stem = PurePosixPath(name.strip()).stem
        db.execute("INSERT OR REPLACE INTO caption VALUES (?, ?)", (stem, caption.strip()))


def _add_prompts(db: sqlite3.Connection, source: Source, entry: Entry) -> None:
    for number, line in source.lines(entry):
        try:
            row = json.loads(line)
            db.execute("INSERT OR REPLACE INTO prompt VALUES (?, ?)", (str(row["id"]), str(row["prompt"])))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{entry}:{number}: expected a JSON object with id and prompt") from None


_TEXTS = {
    "label.txt": _add_labels,
    "labels.txt": _add_labels,
    "caption.txt": _add_captions,
    "captions.txt": _add_captions,
    "prompts.jsonl": _add_prompts,
}
