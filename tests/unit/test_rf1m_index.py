"""The index of a data set: the natural forms of packages are understood, and what is amiss is named."""

import os
import zipfile
from pathlib import Path

import pytest

from rfft.errors import UserError
from rfft.feedback.rf1m_index import Index, build_index, role_of, split_label
from rfft.feedback.sources import Entry, Source


def index(folder, **files):
    """Index of files given by name (__ for /, the suffix after the last _)."""
    source = folder / "source"
    for name, text in files.items():
        path = source / ".".join(name.replace("__", "/").rsplit("_", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    build_index(Source(source), folder / "index", lambda number: None)
    return Index(folder / "index")


ROLES = [
    ("", "images/a.png", "image"),
    ("", "a.jpg", "image"),
    ("", "a.png", "png"),
    ("RF1M_RGBA_part2.zip", "a.png", "product"),
    ("rgba.zip", "images/a.png", "image"),  # the innermost counts
    ("train_images_03.zip", "0001/a.jpg", "image"),
    ("", "rgba_images/a.png", "product"),
    ("depth/1.zip", "a.png", "depth"),
    ("", "Saliency/x/a.PNG", "saliency"),
]


def test_folders_and_archives_say_what_a_picture_is():
    assert [role_of(Entry(archive, member, 1)) for archive, member, _ in ROLES] == [
        role for *_, role in ROLES
    ]


LABEL_LINES = [
    ("a.jpg\t1\tan oak table, 75 cm", ("a.jpg", "1", "an oak table, 75 cm")),
    ("part1/my table.jpg\t3", ("my table.jpg", "3", "")),
    ("a.jpg 5", ("a.jpg", "5", "")),
    ("a.jpg,6,a vase", ("a.jpg", "6", "a vase")),
    ("a.jpg 4  a vase, blue", ("a.jpg", "4", "a vase, blue")),
]


def test_label_lines():
    for line, columns in LABEL_LINES:
        assert split_label(line, "label.txt:1") == columns
    for line in ("a.jpg", "a.jpg\t1\tx\ty", "\t1\tx"):
        with pytest.raises(UserError, match="label.txt:1: expected name, label and caption"):
            split_label(line, "label.txt:1")


def test_labels_lead_to_pictures(tmp_path):
    found = index(
        tmp_path,
        label_txt="a.jpg\t1\ta table\nb.jpg\t6\ta vase\nc.jpg\t2\tx\nd.jpg\t1\tx\ne.jpg\t9\tx\n"
        "f.jpg\t3\t\ng.jpg\t1\tx\na.jpg\t1\ttwice\n",
        prompts_jsonl='{"id": "b", "prompt": "in a park"}\n',
        images__a_jpg="a",
        images__b_jpg="b",
        images__c_jpg="c",
        images__e_jpg="e",
        images__f_jpg="f",
        images__g_jpg="g",
        products__a_png="A",
        products__b_png="B",
        products__f_png="F",
        depth__a_png="da",
    )
    rows = {row.name: row for row in found.rows(0, 10)}
    assert len(found) == 2 and set(rows) == {"a.jpg", "b.jpg"}
    assert (rows["a.jpg"].label, rows["a.jpg"].caption, rows["a.jpg"].prompt) == (0, "a table", "")
    assert (rows["b.jpg"].label, rows["b.jpg"].prompt) == (4, "in a park")
    assert rows["a.jpg"].maps == {"depth": Entry("", "depth/a.png", 2)} and not rows["b.jpg"].maps
    assert rows["b.jpg"].product == Entry("", "products/b.png", 1)
    assert found.left_out() == {"unsuitable": 1, "no_product": 1, "broken": 4}
    problems = dict(found.problems())
    assert problems["d.jpg"] == "no picture of this name" and problems["f.jpg"] == "no caption"
    assert "label '9' is none of" in problems["e.jpg\t9\tx"] and "occurs twice" in problems["a.jpg"]


def test_products_beside_their_pictures_and_captions_of_their_own(tmp_path):
    found = index(
        tmp_path,
        label_txt="a.jpg 1\nb.png 3 own\n",
        captions_txt="a.jpg\ta table\n",
        a_jpg="image",
        a_png="product",
        b_png="image",
        rgba__b_png="product",
    )
    rows = {row.name: row for row in found.rows(0, 2)}
    assert (rows["a.jpg"].image.member, rows["a.jpg"].product.member) == ("a.jpg", "a.png")
    assert (rows["b.png"].image.member, rows["b.png"].product.member) == ("b.png", "rgba/b.png")
    assert (rows["a.jpg"].caption, rows["b.png"].caption) == ("a table", "own")


def test_rows_are_mixed_but_always_alike(tmp_path):
    files = {f"images__{i}_jpg": "x" for i in range(40)} | {f"rgba__{i}_png": "x" for i in range(40)}
    labels = "".join(f"{i}.jpg\t{1 if i < 20 else 3}\tx\n" for i in range(40))
    orders = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        found = index(tmp_path / folder, label_txt=labels, **files)
        orders.append([row.name for row in found.rows(0, 15)] + [row.name for row in found.rows(15, 40)])
    assert orders[0] == orders[1] and len(set(orders[0])) == 40
    assert {row.label for row in found.rows(0, 10)} == {0, 1}


def test_overlapping_packages(tmp_path):
    (tmp_path / "source").mkdir()
    for name in ("images1.zip", "images2.zip"):
        with zipfile.ZipFile(tmp_path / "source" / name, "w") as archive:
            archive.writestr("a.jpg", "same")
    files = {"label_txt": "a.jpg\t1\tx\n", "rgba__a_png": "x"}
    assert len(index(tmp_path, **files)) == 1
    with zipfile.ZipFile(tmp_path / "source/images3.zip", "w") as archive:
        archive.writestr("a.jpg", "another")
    with pytest.raises(
        UserError, match=r"two different files for image 'a': images1.zip:a.jpg and images3.zip"
    ):
        index(tmp_path)


def test_a_name_that_is_not_utf_8(tmp_path):
    (tmp_path / "source/images").mkdir(parents=True)
    Path(os.fsdecode(os.fsencode(tmp_path / "source/images/") + b"/caf\xe9.jpg")).touch()
    found = index(tmp_path, label_txt="a.jpg\t1\tx\n", images__a_jpg="x", rgba__a_png="x")
    assert len(found) == 1
    assert dict(found.problems()) == {"images/caf\\udce9.jpg": "its name is not UTF-8"}


NOTHING_TO_PREPARE = [
    ({"images__a_jpg": "x"}, "no label.txt in it"),
    ({"label_txt": "a.jpg\t1\tx\n"}, "no usable sample; a.jpg: no picture of this name"),
    ({"label_txt": "a.jpg\t2\tx\n", "images__a_jpg": "x"}, "no usable sample; a label, a caption"),
    ({"label_txt": "a.jpg\t1\tx\n", "prompts_jsonl": '\n{"id": 1}\n'}, "prompts.jsonl:2"),
    ({"label_txt": "a.jpg\t1\n", "caption_txt": "a.jpg\n"}, "caption.txt:1: expected a name and"),
]


def test_nothing_to_prepare(tmp_path):
    for number, (files, message) in enumerate(NOTHING_TO_PREPARE):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(UserError) as error:
            index(folder, **files)
        assert message in str(error.value) and not (folder / "index").exists()
