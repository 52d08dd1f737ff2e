"""What commands print on the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping


def list_facts(facts: Mapping[str, str], least_indent: int = 0) -> Iterator[str]:
    """Yield lines of the terminal's width with a name and its value; long values go on below themselves."""
    indent = max([least_indent, *(len(name) + 2 for name in facts)])
    width = max(shutil.get_terminal_size().columns, indent + 20)
    for name, value in facts.items():
        yield from textwrap.wrap(
            f"{name:{indent}}{value}",
            width,
            subsequent_indent=" " * indent,
            break_long_words=False,  # a path stays one that can be copied
            break_on_hyphens=False,
        )
