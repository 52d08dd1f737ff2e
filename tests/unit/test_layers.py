"""The dependency rule of the sources, module by module (the linter's banned imports say it more coarsely)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "rfft"
MODULES = sorted(ROOT.rglob("*.py"))

# module (or package) -> what of rfft it may import; names that are not here may import anything but the cli
ALLOWED = {
    "errors": set(),
    "types": set(),
    "config_file": {"errors"},
    "config": {"errors", "config_file"},
    "diffusion": {"types"},
    "losses": {"types"},
    "metrics": {"types", "errors", "metrics"},
    "models": {"types", "errors", "models"},
    "draft": {"errors"},
    "data": {"types", "errors", "draft", "data", "adworld"},
    "conditions": {"types", "errors", "diffusion", "models", "data"},
    "step": {"types", "diffusion", "losses"},
    "generate": {"types", "errors", "diffusion", "step", "models", "data", "metrics", "conditions"},
    "tracking": {"config_file", "log"},
    "checkpoint": {"errors", "draft"},
    "ema": set(),
    "log": {"errors", "config_file", "draft"},
}
THIRD_PARTY = {
    "diffusers": {"models/bundle", "models/skeleton.py", "adworld", "export.py"},
    "accelerate": {"job.py", "rfnet_trainer.py", "cli.py"},
}


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_keep_to_the_layers(path):
    inside = path.relative_to(ROOT)
    layer = inside.parts[0].removesuffix(".py")
    own = {name.split(".")[1] for name in imports(path) if name.startswith("rfft.")}
    assert "cli" not in own or layer == "__main__"
    assert own <= ALLOWED.get(layer, own) | {"__version__"}
    for package, users in THIRD_PARTY.items():
        if any(name.split(".")[0] == package for name in imports(path)):
            assert any(str(inside).startswith(user) for user in users), f"{inside} imports {package}"
