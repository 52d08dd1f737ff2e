"""Labelled feedback in RF1M's form: labels become classes, broken photos are left out, errors name lines."""

import cv2
import numpy as np
import pytest

from rfft.errors import UserError
from rfft.feedback.folder import CODE_OF_CLASS, read_feedback
from rfft.types import LABELS

RED, GREEN = (255, 0, 0), (0, 255, 0)


@pytest.fixture
def folder(tmp_path):
    """A red picture with a green product, and labels that the test writes."""
    for kind in ("images", "products", "depth"):
        (tmp_path / kind).mkdir()
    cv2.imwrite(str(tmp_path / "images/a.png"), np.full((8, 6, 3), RED[::-1], np.uint8))
    cv2.imwrite(str(tmp_path / "products/a.png"), np.full((8, 6, 4), (*GREEN[::-1], 128), np.uint8))
    cv2.imwrite(str(tmp_path / "depth/a.png"), np.full((8, 6), 77, np.uint8))
    return tmp_path


def labels(folder, text):
    (folder / "label.txt").write_text(text, encoding="utf-8")
    return folder


def test_labels_become_classes_and_unsuitable_is_left_out(folder):
    text = "".join(f"{code}.png\t{code}\tcaption {code}\n" for code in range(1, 7))
    records = read_feedback(labels(folder, text))
    assert [(record.name, LABELS[record.label]) for record in records] == [
        ("1.png", "available"),
        ("3.png", "space_mismatch"),
        ("4.png", "size_mismatch"),
        ("5.png", "indistinctiveness"),
        ("6.png", "shape_hallucination"),
    ]
    assert len(CODE_OF_CLASS) == len(LABELS)


def test_a_record_loads_its_pictures(folder):
    labels(folder, "a.png\t1\toak bookcase, about 180 cm tall\n")
    (folder / "prompts.jsonl").write_text('{"id": "a", "prompt": "in a park"}\n')
    (record,) = read_feedback(folder)
    sample = record.load()
    assert (record.caption, record.prompt) == ("oak bookcase, about 180 cm tall", "in a park")
    assert sample.image.shape == (8, 6, 3) and tuple(sample.image[0, 0]) == RED
    assert sample.product.shape == (8, 6, 4) and tuple(sample.product[0, 0]) == (*GREEN, 128)
    assert sample.depth.shape == (8, 6) and sample.depth[0, 0] == 77
    assert sample.saliency is None


WRONG_LINES = [
    ("a.png\t1\n", "label.txt:1: 2 columns"),
    ("a.png\t1\tx\nb.png\t7\tx\n", "label.txt:2: label '7' is none of 1 available"),
    ("a.png\t1\t \n", "label.txt:1: a.png has no caption"),
    ("../a.png\t1\tx\n", "no plain file name"),
    ("..\t1\tx\n", "no plain file name"),
    ("a.png\t1\tx\n\na.png\t1\tx\n", "label.txt:3: a.png occurs twice"),
    ("a.png\t1\tx\na.jpg\t3\tx\n", "label.txt:2: a.jpg and a.png have one product"),
    ("a.png\t2\tx\n", "no usable record"),
    ("", "no usable record"),
]


def test_a_wrong_line_is_named(folder):
    for text, message in WRONG_LINES:
        with pytest.raises(UserError) as error:
            read_feedback(labels(folder, text))
        assert message in str(error.value), text


def test_missing_files_are_named(folder):
    with pytest.raises(UserError, match=r"label.txt: cannot be read: No such file"):
        read_feedback(folder)
    (record,) = read_feedback(labels(folder, "b.png\t1\tx\n"))
    with pytest.raises(UserError, match=r"images/b.png: missing or not a readable image"):
        record.load()


def test_a_product_without_alpha_is_refused(folder):
    cv2.imwrite(str(folder / "products/a.png"), np.zeros((8, 6, 3), np.uint8))
    (record,) = read_feedback(labels(folder, "a.png\t1\tx\n"))
    with pytest.raises(UserError, match=r"products/a.png: no alpha channel .RGBA needed."):
        record.load()


def test_a_product_of_sixteen_bits_keeps_its_colours(folder):
    deep = np.full((8, 6, 4), (*GREEN[::-1], 128), np.uint16) * 256 + 7
    cv2.imwrite(str(folder / "products/a.png"), deep)
    (record,) = read_feedback(labels(folder, "a.png\t1\tx\n"))
    assert tuple(record.load().product[0, 0]) == (*GREEN, 128)


def test_a_bomb_is_not_decoded(folder):
    cv2.imwrite(str(folder / "images/a.png"), np.zeros((7100, 7100), np.uint8))  # 50 million pixels, 50 kB
    (record,) = read_feedback(labels(folder, "a.png\t1\tx\n"))
    with pytest.raises(UserError, match=r"images/a.png: more than 50000000 pixels"):
        record.load()


def test_broken_prompts_are_named(folder):
    (folder / "prompts.jsonl").write_text('{"id": "a", "prompt": "x"}\n{"id": "b"}\n')
    with pytest.raises(UserError, match=r"prompts.jsonl:2"):
        read_feedback(labels(folder, "a.png\t1\tx\n"))
