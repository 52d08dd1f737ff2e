"""Files and result folders: whole or not at all, and never lost for the place they should go to."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rfft.errors import UserError
from rfft.utils.atomic_io import new_file, new_folder
from rfft.utils.checkpoint import Checkpoints


def write(out: Path) -> None:
    with new_folder(out) as draft:
        (draft / "picture.png").touch()


def test_half_a_file_is_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "latents.pt"
    file.write_bytes(b"old")

    def cut_off() -> None:
        with new_file(file) as draft:
            draft.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]
    with new_file(file) as draft:
        draft.write(b"whole")
    assert file.read_bytes() == b"whole" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("target", ["empty", "missing"])
def test_a_link_leads_to_the_results(tmp_path: Path, target: str) -> None:
    """As to a larger disk."""
    (tmp_path / "empty").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / target)
    write(link)
    assert link.is_symlink()
    assert [path.name for path in (tmp_path / target).iterdir()] == ["picture.png"]
    assert not list(tmp_path.glob(".*"))


def test_what_cannot_be_replaced_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(out: Path) -> None:
        with new_folder(out):
            pytest.fail("the work began")

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="name a new folder inside it"):
        work(Path())
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "volume")
    with pytest.raises(UserError, match="volume: a mount point"):
        work(tmp_path / "volume")


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out") as draft:
        (draft / "half").touch()
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_files_end_with_the_mode_of_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    """safetensors makes its files for the owner alone: colleagues, and a server, could not read an export."""
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "export") as draft:
            (draft / "unet").mkdir()
            save_file({"w": torch.ones(1)}, draft / "unet" / "weights.safetensors")
        Checkpoints(tmp_path, keep=1).save(1, {"adapter": {"w": torch.ones(1)}}, {})
    finally:
        os.umask(before)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {file.name for file in written} >= {"weights.safetensors", "adapter.safetensors", "state.pt"}
    assert {file.stat().st_mode & 0o777 for file in written} == {mode}
