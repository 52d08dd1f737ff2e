"""Cached conditions, and the draws that depend on seed and position alone."""

from __future__ import annotations

import logging

import pytest
import torch

from rfft.data.conditions import encode_samples, init_image, noise_for, product_for
from rfft.data.samples import Sample
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
