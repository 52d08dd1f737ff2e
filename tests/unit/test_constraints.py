"""The tested set, constraints.txt, must be one that every supported Python can install."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
OLDEST, NEWER = "3.10", "3.11"


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_a_pin_for_every_python_runs_on_the_oldest() -> None:
    """As far as the pinned versions are installed here."""
    too_new = []
    for pin in pins():
        with suppress(PackageNotFoundError):
            installed = metadata(pin.name)
            is_pinned = installed["Version"].partition("+")[0] in pin.specifier
            if pin.marker is None and is_pinned:
                needs = SpecifierSet(installed["Requires-Python"] or "")
                too_new += [] if OLDEST in needs else [f"{pin}: needs Python {needs}"]
    assert not too_new


def test_what_is_pinned_for_newer_pythons_is_pinned_for_the_oldest() -> None:
    marked = [pin for pin in pins() if pin.marker is not None]
    oldest, newer = (
        sorted(pin.name for pin in marked if pin.marker and pin.marker.evaluate({"python_version": version}))
        for version in (OLDEST, NEWER)
    )
    assert oldest == newer and len(marked) == len(oldest) + len(newer)
