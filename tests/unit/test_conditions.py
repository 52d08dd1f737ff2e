"""Cached conditions, and the draws that depend on seed and position alone."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rfft.data.conditions import encode_samples, init_image, noise_for, product_for
from rfft.data.samples import Framing, Sample, load_samples
from rfft.errors import UserError
from rfft.models.bundle import Bundle


def samples() -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    canvas = torch.rand(3, 4, 32, 32, generator=generator)
    canvas[:, 3] = 0
    canvas[:, 3, 12:28, 8:20] = 1
    texts = ["a park", "a bin", "a park"]
    return [
        Sample(f"s{i}", canvas[i], "a box"[: 3 + i], text, "dim" if i else "") for i, text in enumerate(texts)
    ]


def test_conditions_are_those_of_each_sample(bundle: Bundle) -> None:
    made = samples()
    batch = encode_samples(bundle, made, batch_size=2)
    assert len(batch) == 3 and not batch.noise.any()
    assert batch.edges.shape == (3, 3, 32, 32) and batch.edges.max() == 1
    assert batch.mask.shape == (3, 1, 8, 8) and 0 < batch.mask.mean() < 1
    for i, sample in enumerate(made):
        one = batch.index([i])
        z, _ = bundle.encode_prompts([sample.prompt], 64)
        null, _ = bundle.encode_prompts([sample.negative], 64)
        torch.testing.assert_close(one.z.hidden, z.hidden)
        torch.testing.assert_close(one.null.hidden, null.hidden)
        torch.testing.assert_close(one.x_o, bundle.encode_image(init_image(sample.canvas[None])))
        torch.testing.assert_close(one.product[0], sample.canvas)
        assert (one.captions, one.prompts) == ([sample.caption], [sample.prompt])


def test_the_product_lies_on_grey() -> None:
    product = torch.zeros(1, 4, 2, 2)
    product[:, :3] = 0.25
    product[:, 3, 0] = 1
    assert init_image(product)[0, 0].tolist() == [[0.25, 0.25], [0.5, 0.5]]


def test_a_long_prompt_is_cut_and_said_so(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    sample = samples()[0]
    long = [Sample(f"{i}", sample.canvas, "x", f"{'ab ' * 20} {i}") for i in range(5)]
    with caplog.at_level(logging.WARNING):
        encode_samples(bundle, long)
    assert len(caplog.records) == 4
    assert "longer than the text encoder takes" in caplog.records[0].getMessage()
    assert caplog.records[3].getMessage().startswith("2 more prompts")


def test_noise_depends_on_seed_and_index_only() -> None:
    noise = noise_for(1, [5, 6, 7], (4, 8, 8))
    assert torch.equal(noise_for(1, [7, 5], (4, 8, 8)), noise[[2, 0]])
    assert not torch.equal(noise_for(2, [5], (4, 8, 8))[0], noise[0])
    many = noise_for(0, list(range(200)), (4, 8, 8))
    assert abs(many.mean()) < 0.01 and abs(many.std() - 1) < 0.01


def test_every_epoch_has_every_sample_in_another_order() -> None:
    order = [product_for(3, place, 10) for place in range(40)]
    epochs = [order[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert order != [product_for(4, place, 10) for place in range(40)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three products, with captions in their names."""
    (tmp_path / "photos").mkdir()
    for name in ("box", "cup", "jar"):
        pixels = np.zeros((40, 30, 4), np.uint8)
        pixels[10:30, 5:25] = 200, 90, 30, 255
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path / "photos"


def test_prompts_are_dealt_out_in_turn(photos: Path, tmp_path: Path) -> None:
    entries = (
        '{"prompt": "one {}", "flag": 1}, {"prompt": "two", "negative_prompt": "no", "image_scale": 0.5}'
    )
    prompts = tmp_path / "prompts.json"
    prompts.write_text(f'[{entries}, {{"prompt": "three"}}]')
    made = load_samples(str(photos), str(prompts), Framing(64, 0.75), prompts_per_product=2)
    assert [s.id for s in made] == ["box-0", "box-1", "cup-0", "cup-1", "jar-0", "jar-1"]
    assert [s.prompt.split()[0] for s in made] == ["one", "two", "three", "one", "two", "three"]
    assert "{" not in made[0].prompt and made[1].negative == "no"
    widths = [int((s.canvas[3].amax(0) > 0).sum()) for s in made]
    assert widths[:2] == [48, 32]
    again = load_samples(str(photos), str(prompts), Framing(64, 0.75), prompts_per_product=2)
    assert [s.prompt for s in again] == [s.prompt for s in made]
    assert len(load_samples(str(photos), str(prompts), Framing(64, 0.75), count=2)) == 2


def test_a_product_without_a_prompt(photos: Path) -> None:
    with pytest.raises(UserError, match="product 'box' has no prompt; .*data.prompts"):
        load_samples(str(photos), None, Framing(64, 0.75))


def test_adworld() -> None:
    made = load_samples("adworld:test", None, Framing(64, 0.7), count=3, prompts_per_product=2, seed=1)
    assert len(made) == 6 == len({s.id for s in made})
    assert made[0].attributes and torch.equal(made[0].canvas, made[1].canvas)
    assert made[0].canvas.shape == (4, 64, 64) and made[0].canvas.max() <= 1


@pytest.mark.parametrize(
    ("source", "size", "message"),
    [("adworld:tset", 64, "give adworld:train"), ("adworld:test", 128, "set data.image_size=64")],
)
def test_adworld_has_one_size_and_three_splits(source: str, size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_samples(source, None, Framing(size, 0.7))
