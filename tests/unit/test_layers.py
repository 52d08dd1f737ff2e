"""The house: every room (a folder of rfft/, or a module at its top) imports only from the rooms below it."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2] / "rfft"
ROOMS = """
types errors config metrics diffusion utils models objectives rewards data feedback build generation adworld
evaluation review training rfnet preference __init__ cli __main__
""".split()  # noqa: SIM905  from the ground up
THIRD_PARTY = {  # where alone a library may be imported
    "diffusers": ("models", "training/pretrain", "generation/export.py"),
    "accelerate": ("training", "rfnet"),
}


def imported(file: Path) -> Iterator[str]:
    """Dotted names of all modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_rooms_import_from_below_and_libraries_stay_where_they_belong() -> None:
    wrong = []
    for file in sorted(ROOT.rglob("*.py")):
        inside = file.relative_to(ROOT)
        room = inside.parts[0].removesuffix(".py")
        for name in imported(file):
            package, _, rest = name.partition(".")
            target = rest.split(".")[0]
            if package == "rfft" and target in ROOMS and ROOMS.index(target) > ROOMS.index(room):
                wrong.append(f"{inside} imports {name} from above")
            allowed = THIRD_PARTY.get(package)
            if allowed and not str(inside).startswith(allowed):
                wrong.append(f"{inside} imports {package}")
    assert not wrong, "\n".join(wrong)


def test_nothing_else_is_at_the_top() -> None:
    there = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or any(path.rglob("*.py"))}
    assert there == set(ROOMS)
