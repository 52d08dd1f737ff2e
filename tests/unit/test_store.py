"""The store on disk: bounded, shared, and never a reason to stop."""

from __future__ import annotations

import os
from multiprocessing import get_context
from pathlib import Path

import lmdb
import pytest
import torch

from rfft.data.store import ITEM, KEPT, SLACK, Store, find_store, key_of

ROOM = 4_000_000


def item(value: int, size: int = 100_000) -> dict[str, torch.Tensor]:
    return {"canvas": torch.full((size,), value, dtype=torch.uint8), "x_o": torch.tensor([value / 3])}


def test_what_was_put_is_there_for_others(tmp_path: Path) -> None:
    store = Store(tmp_path / "new/cache", ROOM)
    keys = [key_of("a", "b"), key_of("ab"), key_of(b"a", "b")]
    assert keys[0] == keys[2] != keys[1]
    assert store.get(keys) == {} and store.used() == 0 and not (tmp_path / "new").exists()
    store.put({keys[0]: item(1)})
    store.put({keys[0]: item(9), keys[1]: item(2)})  # what an address stands for never changes
    found = Store(tmp_path / "new/cache", ROOM).get(keys)
    for key, value in zip(keys, (1, 2, 1), strict=True):
        for name, tensor in item(value).items():
            assert torch.equal(found[key][name], tensor) and found[key][name].dtype == tensor.dtype


def test_the_oldest_items_go(tmp_path: Path) -> None:
    """100 items of 100 kB in 4 MB: neither the items nor their file grow beyond the bound."""
    store = Store(tmp_path, ROOM)
    keys = [key_of(str(i)) for i in range(100)]
    for i, key in enumerate(keys):
        store.put({key: item(i)})
        assert store.used() <= ROOM
    there = store.get(keys)
    assert list(there) == keys[-len(there) :] and 0.8 * KEPT * ROOM < 100_000 * len(there) <= ROOM
    assert int(there[keys[99]]["canvas"][0]) == 99
    assert (tmp_path / "data.mdb").stat().st_size <= SLACK * ROOM
    store.put({key_of("large"): item(1, size=ROOM)})
    assert store.get([key_of("large")]) == {} and list(store.get(keys)) == list(there)


def fill(folder: Path, first: int) -> None:
    store = Store(folder, 100 * ROOM)
    for i in range(first, first + 40):
        store.put({key_of(str(i)): item(i % 256, size=1000)})
        assert store.get([key_of(str(i))])


def test_processes_share_it(tmp_path: Path) -> None:
    """Two write the same and other items at the same time; a third one dies in the middle of it."""
    context = get_context("fork")
    workers = [context.Process(target=fill, args=(tmp_path, first)) for first in (0, 20)]
    for worker in workers:
        worker.start()
    killed = context.Process(target=die_writing, args=(tmp_path,))
    killed.start()
    for worker in (*workers, killed):
        worker.join(60)
    assert [worker.exitcode for worker in (*workers, killed)] == [0, 0, 9]
    store = Store(tmp_path, 100 * ROOM)
    found = store.get([key_of(str(i)) for i in range(61)])
    assert len(found) == 60 and all(int(found[key_of(str(i))]["canvas"][0]) == i for i in range(60))
    store.put({key_of("after"): item(1)})
    assert key_of("after") in store.get([key_of("after")])


def die_writing(folder: Path) -> None:
    with Store(folder, 100 * ROOM)._opened() as environment, environment.begin(write=True) as transaction:
        transaction.put(ITEM + key_of("60"), b"never there")
        os._exit(9)


def test_a_folder_that_cannot_be_used_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file", ROOM)
    for _ in range(2):
        store.put({key_of("a"): item(1)})
        assert store.get([key_of("a")]) == {} and store.used() == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: data.cache: {tmp_path}/file cannot be used (") and "without it" in line


def test_what_is_damaged_is_made_anew(tmp_path: Path) -> None:
    store = Store(tmp_path, ROOM)
    store.put({key_of("a"): item(1)})
    with lmdb.open(str(tmp_path)) as environment, environment.begin(write=True) as transaction:
        transaction.put(ITEM + key_of("b"), b"no tensors")
    assert store.get([key_of("a"), key_of("b")]).keys() == {key_of("a")}


def test_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_store(None, 1) is None
    monkeypatch.setenv("RFFT_CACHE", str(tmp_path / "own"))
    found = find_store("auto", 1.5)
    assert found is not None and (found.folder, found.most_bytes) == (tmp_path / "own", 1_500_000_000)
    assert find_store(str(tmp_path / "own"), 1.5) is found  # LMDB must not be opened twice
    monkeypatch.delenv("RFFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    other = find_store("auto", 1.5)
    assert other is not None and other.folder == tmp_path / "rfft"
