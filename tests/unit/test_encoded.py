"""Samples encoded when they are asked for: the same bits whenever, wherever and beside whatever that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rfft.data import dataset
from rfft.data.conditions import encode_samples
from rfft.data.dataset import Samples, read_samples
from rfft.data.encoded import RECENT, EncodedSamples
from rfft.data.encoder import Encoder, fingerprint
from rfft.data.samples import Framing, Selection, Skipped, UnusableProduct
from rfft.data.store import Store
from rfft.models.bundle import Bundle
from rfft.models.load import load_bundle
from rfft.types import Batch, Conditioning
from tests.photos import write_photos

SIZE, COUNT = 32, 6
PROMPTS = '[{"prompt": "a park", "negative_prompt": "dim"}, {"prompt": "a bin"}]'


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six products and prompts.json, of which the negative one is the second prompt's default."""
    folder = tmp_path / "photos"
    write_photos(folder, COUNT)
    (tmp_path / "prompts.json").write_text(PROMPTS)
    return folder


@pytest.fixture
def samples(photos: Path) -> Samples:
    return read_samples(str(photos), selection(photos))


def selection(photos: Path) -> Selection:
    return Selection(Framing(SIZE, 0.75), str(photos.parent / "prompts.json"))


def tensors(batch: Batch | Conditioning) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Conditioning):
            found |= {f"{field.name}.{name}": tensor for name, tensor in tensors(value).items()}
        elif isinstance(value, torch.Tensor):
            found[field.name] = value
    return found


def assert_same(one: Batch, other: Batch) -> None:
    assert (one.captions, one.prompts) == (other.captions, other.prompts)
    for name, tensor in tensors(one).items():
        assert torch.equal(tensor, tensors(other)[name]), name


def watched(bundle: Bundle) -> tuple[Bundle, list[str]]:
    """The bundle, and a list of what its encoders are called for."""
    calls: list[str] = []
    for name in ("encode_image", "encode_prompts"):
        original: Callable[..., Any] = getattr(bundle, name)

        def call(*given: Any, name: str = name, original: Callable[..., Any] = original) -> Any:
            calls.append(given[0][0] if name == "encode_prompts" else name)
            return original(*given)

        setattr(bundle, name, call)
    return bundle, calls


def test_they_are_what_all_at_once_would_be(bundle: Bundle, samples: Samples) -> None:
    found = EncodedSamples(samples, Encoder(bundle, SIZE), None).index([4, 1, 4])
    whole = encode_samples(bundle, list(samples)).index([4, 1, 4])
    assert found.sample.tolist() == [4, 1, 4] and not found.noise.any()
    assert (found.captions, found.prompts) == (whole.captions, whole.prompts)
    for name, tensor in tensors(found).items():
        tolerance = 0.51 / 255 if name == "product" else 0.02 if name == "x_o" else 1e-5  # canvases of 8 bits
        torch.testing.assert_close(tensor, tensors(whole)[name], rtol=0, atol=tolerance, msg=name)


def test_nothing_else_changes_a_sample(bundle: Bundle, samples: Samples, tmp_path: Path) -> None:
    """Not the batch, not the store, not those who read ahead."""
    encoder = Encoder(bundle, SIZE)
    alone = [EncodedSamples(samples, encoder, None).index([i]) for i in range(COUNT)]
    store = Store(tmp_path / "cache", 10**8)
    for workers in (0, 2, 0):
        encoded = EncodedSamples(samples, encoder, store, workers=workers)
        batches = [[0, 5, 2], [3, 3], [1, 4, 0]]
        for i, numbers in enumerate(batches):
            batch = encoded.index(numbers)
            encoded.prefetch(batches[i + 1 :])
            for place, number in enumerate(numbers):
                assert_same(batch.index([place]), replace(alone[number], sample=torch.tensor([number])))


def test_every_picture_and_prompt_is_encoded_once(bundle: Bundle, samples: Samples, tmp_path: Path) -> None:
    bundle, calls = watched(bundle)
    store, encoder = Store(tmp_path / "cache", 10**8), Encoder(bundle, SIZE)
    encoded = EncodedSamples(samples, encoder, store)
    for numbers in ([0, 1, 0], [2, 3], [0, 1, 2, 3, 4, 5]):
        encoded.index(numbers)
    assert calls.count("encode_image") == COUNT
    assert sorted(call for call in calls if call != "encode_image") == ["", "a bin", "a park", "dim"]
    calls.clear()
    EncodedSamples(samples, encoder, store).index(range(COUNT))  # another process, a later run
    assert calls == []
    EncodedSamples(samples, encoder, None).index([0, 0])
    assert sorted(calls) == ["a park", "dim", "encode_image"]


def test_what_a_controlnet_takes_is_encoded_once(
    bundle: Bundle, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By families that encode it: here of edges and product, four times as small."""
    counted: list[int] = []

    def encode_control(edges: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
        counted.append(len(edges))
        return edges[..., ::4, ::4] + product[:, 3:, ::4, ::4]

    monkeypatch.setattr(bundle.family, "encodes_control", True)
    monkeypatch.setattr(bundle.family, "encode_control", encode_control)
    store, encoder = Store(tmp_path / "cache", 10**8), Encoder(bundle, SIZE)
    encoded = EncodedSamples(samples, encoder, store)
    alone = [EncodedSamples(samples, encoder, None).index([i]).edges for i in (0, 1)]
    counted.clear()
    first = encoded.index([0, 1, 0]).edges
    assert torch.equal(first, torch.cat([*alone, alone[0]])) and counted == [1, 1]
    assert torch.equal(EncodedSamples(samples, encoder, store).index([1, 0]).edges, first[[1, 0]])
    assert counted == [1, 1]
    EncodedSamples(samples, encoder, store, canny=(50, 90)).index([0])
    assert counted == [1, 1, 1]  # other edges


def test_what_a_stored_picture_depends_on(
    bundle: Bundle, samples: Samples, photos: Path, tmp_path: Path
) -> None:
    """Its file's content and framing, the weights that encoded it, the size."""
    store = Store(tmp_path / "cache", 10**8)
    bundle, calls = watched(bundle)

    def encodes(samples: Samples, number: int) -> int:
        calls.clear()
        EncodedSamples(samples, Encoder(bundle, SIZE), store).index([number])
        return calls.count("encode_image")

    assert [encodes(samples, 0), encodes(samples, 0)] == [1, 0]
    (photos / "0.png").rename(photos / "6.png")
    renamed = read_samples(str(photos), selection(photos))
    assert renamed.entry(5).id == "6" and encodes(renamed, 5) == 0
    (photos / "6.png").write_bytes((photos / "1.png").read_bytes())
    assert encodes(renamed, 5) == 1
    assert encodes(read_samples(str(photos), replace(selection(photos), framing=Framing(SIZE, 0.5))), 5) == 1
    before = fingerprint(bundle)
    next(bundle.family.vae.encoder.parameters()).data.mul_(1.0001)
    assert fingerprint(bundle) != before and encodes(renamed, 5) == 1


def test_weights_that_encode_nothing_do_not_count(pipeline_folder: Path) -> None:
    bundle = load_bundle(pipeline_folder)
    before = fingerprint(bundle)
    bundle.train(["denoiser_lora"], 2, 4, ["to_q"])
    next(bundle.unwrapped.parameters()).data.add_(1)
    assert fingerprint(bundle) == before == fingerprint(load_bundle(pipeline_folder))


def test_few_prompts_are_in_memory(bundle: Bundle, photos: Path) -> None:
    rows = ", ".join(f'{{"prompt": "a park {i}"}}' for i in range(RECENT + 40))
    (photos.parent / "prompts.json").write_text(f"[{rows}]")
    many = read_samples(str(photos), replace(selection(photos), prompts_per_product=20))
    encoded = EncodedSamples(many, Encoder(bundle, SIZE), None)
    for first in range(0, len(many), 10):
        encoded.index(range(first, first + 10))
    assert len(encoded._prompts) == RECENT


def test_a_broken_product_is_found_when_it_is_needed(
    bundle: Bundle, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond those that are looked at first; skipped, the next one takes its place in all orders."""
    monkeypatch.setattr(dataset, "LOOK", 2)
    for name in ("3", "4"):
        (photos / f"{name}.png").write_bytes(b"")
    encoder, skipped = Encoder(bundle, SIZE), list[Skipped]()
    stopped = EncodedSamples(read_samples(str(photos), selection(photos)), encoder, None, workers=1)
    stopped.prefetch([[3]])
    with pytest.raises(UnusableProduct, match=r"3.png: not a readable image"):
        stopped.index([3])
    samples = read_samples(str(photos), selection(photos), skipped)
    assert len(samples) == COUNT and not skipped
    samples.on_skip = skipped.append
    for order in ([5, 4, 3, 2], [3, 4]):
        found = EncodedSamples(samples, encoder, None).index(order)
        expected = {2: 2, 3: 5, 4: 5, 5: 5}
        whole = EncodedSamples(samples, encoder, None)
        for place, number in enumerate(order):
            assert torch.equal(found.x_o[place], whole.index([expected[number]]).x_o[0])
    assert sorted(product.id for product in skipped) == ["3", "4"]
