"""Reading out of folders and archives: names are never paths, sizes are believed to nobody."""

import zipfile

import pytest

from rfft.data.pictures import BrokenFile
from rfft.errors import UserError
from rfft.feedback.sources import Entry, Source


def test_a_folder_with_archives_in_it(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"loose")
    (tmp_path / "images/.hidden.png").write_bytes(b"x")
    (tmp_path / "images/dangling.png").symlink_to(tmp_path / "gone")
    with zipfile.ZipFile(tmp_path / "images/part1.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("deep/b.png", b"packed" * 100)
        archive.writestr("__MACOSX/deep/._b.png", b"junk")
    source = Source(tmp_path)
    loose, dangling, packed = source.entries()
    assert (loose, packed) == (
        Entry("", "images/a.png", 5),
        Entry("images/part1.zip", "deep/b.png", 600),
    )
    assert (source.read(loose), source.read(packed)) == (b"loose", b"packed" * 100)
    assert packed.path == "images/part1/deep/b.png"
    with pytest.raises(BrokenFile, match="No such file"):
        source.read(dangling)
    for entry in (loose, packed):
        with pytest.raises(BrokenFile, match="more than 4 bytes"):
            source.read(entry, limit=4)


def test_an_archive_cannot_reach_out(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "evil.png"
    inside.mkdir()
    with zipfile.ZipFile(inside / "a.zip", "w") as archive:
        archive.writestr("../evil.png", b"1")
        archive.writestr("/etc/evil.png", b"2")
    source = Source(inside)
    assert [source.read(entry) for entry in source.entries()] == [b"1", b"2"]
    assert not outside.exists() and sorted(tmp_path.rglob("*")) == [inside, inside / "a.zip"]


def test_a_decompression_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(8 * 2**20))
        archive.writestr("label.txt", b"a" * (4 * 2**20))
    source = Source(tmp_path / "a.zip")
    bomb, text = source.entries()
    with pytest.raises(BrokenFile, match=r"decompression bomb: 8388608 bytes out of \d+"):
        source.read(bomb)
    with pytest.raises(UserError, match=r"a.zip:label.txt: cannot be read: decompression bomb"):
        list(source.lines(text))


def test_a_member_that_lies_about_its_content(tmp_path):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", b"the right bytes")
    file.write_bytes(file.read_bytes().replace(b"the right", b"the wrong"))
    source = Source(file)
    with pytest.raises(BrokenFile, match="Bad CRC"):
        source.read(next(source.entries()))


def test_what_is_no_source(tmp_path):
    (tmp_path / "half.zip").write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(UserError, match="gone: no such folder or zip"):
        Source(tmp_path / "gone")
    with pytest.raises(UserError, match=r"half.zip: not a zip archive"):
        Source(tmp_path / "half.zip")
    with pytest.raises(UserError, match=r"half.zip: not a whole zip archive"):
        list(Source(tmp_path).entries())


def test_archives_that_zipfile_cannot_read(tmp_path):
    """A name that says it is UTF-8 and is not; an archive of a later version of the form."""
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("ü.png", b"x")
    whole = file.read_bytes()
    directory = whole.index(b"PK\x01\x02")
    for damaged in (
        whole.replace("ü".encode(), b"\xff\xfe"),
        whole[: directory + 6] + b"\xff" + whole[directory + 7 :],
    ):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a.zip: not a whole zip archive"):
            list(Source(file).entries())


def test_lines(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\n  \nzwei ü\n".encode())
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "c.txt").write_bytes(b"x" * 100_000)
    source = Source(tmp_path)
    good, binary, long = source.entries()
    assert list(source.lines(good)) == [(1, "one"), (4, "zwei ü")]
    with pytest.raises(UserError, match=r"b.txt: not a UTF-8 text file"):
        list(source.lines(binary))
    with pytest.raises(UserError, match="line 1 is longer than 65536 bytes"):
        list(source.lines(long))


def test_few_archives_are_open_at_a_time(tmp_path):
    for i in range(9):
        with zipfile.ZipFile(tmp_path / f"{i}.zip", "w") as archive:
            archive.writestr("a.png", str(i))
    source = Source(tmp_path)
    entries = list(source.entries())
    assert [source.read(entry) for entry in entries] == [str(i).encode() for i in range(9)]
    assert len(source._open) == 4
