"""Cached conditions, and the draws that depend on seed and position alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rfft.data import conditions
from rfft.data.conditions import encode_samples, init_image, noise_for, product_for
from rfft.data.samples import Sample
from rfft.models.bundle import Bundle
from rfft.models.load import load_bundle


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
    batch = encode_samples(bundle, made)
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


def test_the_encoder_sees_few_pixels_at_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the products' size and number, its memory is that of PIXELS pixels, or of one picture."""
    made = [replace(sample, id=f"{i}") for i, sample in enumerate(samples() * 3)]
    whole = encode_samples(bundle, made)
    seen: list[int] = []
    monkeypatch.setattr(conditions, "PIXELS", 2 * 32**2)
    bundle.family.vae.encoder.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0][:, 0].numel())
    )
    torch.testing.assert_close(encode_samples(bundle, made).x_o, whole.x_o)
    assert sum(seen) == 9 * 32**2 and max(seen) == 2 * 32**2
    assert [conditions.encoded_at_once(size) for size in (32, 512, 1024)] == [2, 1, 1]


def test_prompts_that_cannot_be_read_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """One short line each, with a count; no prompt is printed. By the embedded generator's tokenizer."""
    canvas = samples()[0].canvas
    texts = [
        "a vase in a park",
        "a vase \U0001f600 in a park",
        "a vase_2 \u4e2d",
        "a vase " * 5_000,
        "no park",
    ]
    texts += [f"a vase {chr(letter)}" for letter in range(0x4E00, 0x4E20)]
    made = [Sample(f"{i}", canvas, "a vase", text, "dim") for i, text in enumerate([*texts, texts[1]])]
    encode_samples(load_bundle("rf-tiny"), made)
    long, foreign = capsys.readouterr().err.splitlines()
    assert long.startswith("warning: 1 of 37 prompts are longer than the text encoder reads: up to 34,")
    assert foreign.startswith(
        "warning: 34 of 37 prompts hold characters that the text encoder does not know: _ "
    )
    assert foreign.endswith(" ...") and max(len(long), len(foreign)) < 130


def test_noise_depends_on_seed_and_index_only() -> None:
    noise = noise_for(1, [5, 6, 7], (4, 8, 8))
    assert torch.equal(noise_for(1, [7, 5], (4, 8, 8)), noise[[2, 0]])
    assert not torch.equal(noise_for(2, [5], (4, 8, 8))[0], noise[0])
    many = noise_for(0, list(range(200)), (4, 8, 8))
    assert abs(many.mean()) < 0.01 and abs(many.std() - 1) < 0.01


def test_every_epoch_has_every_sample_in_another_order() -> None:
    order = [product_for(3, index, 10) for index in range(40)]
    epochs = [order[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert order != [product_for(4, index, 10) for index in range(40)]
