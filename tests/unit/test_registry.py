"""Names and dotted paths in a config lead to classes and functions, or to one clear line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rfft.errors import UserError
from rfft.utils.registry import construct, resolve

KNOWN = {"fraction": "fractions:Fraction", "broken": "fractions:Missing"}
OWN = "class Thing:\n    def __init__(self, size: int = 1) -> None:\n        self.size = size\n"


def test_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_parts_of_a_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert resolve("part", "fraction", KNOWN)(1, 2) == resolve("part", "fractions:Fraction", {})("1/2")
    assert construct("part", "own_parts_of_a_test:Thing", {"size": 3}, KNOWN).size == 3
    with pytest.raises(
        UserError, match=r"part 'own_parts_of_a_test:Thing': its options do not fit: .*colour"
    ):
        construct("part", "own_parts_of_a_test:Thing", {"colour": 1}, KNOWN)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fractoin", "part 'fractoin' is not known; give fraction, broken or a path package.module:Name"),
        (":Fraction", "part ':Fraction' is not known"),
        ("fractions:", "part 'fractions:' is not known"),
        (".fractions:Fraction", "part '.fractions:Fraction' is not known"),
        ("no.such:Fraction", "part 'no.such:Fraction' cannot be used: No module named 'no'"),
        ("broken", "part 'broken' cannot be used: module 'fractions' has no attribute 'Missing'"),
    ],
)
def test_mistakes(name: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        resolve("part", name, KNOWN)
    assert message in str(error.value)
