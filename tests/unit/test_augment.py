"""Augmented scenes keep what the verdict depends on."""

import torch

from rfft.diffusion.compositing import paste
from rfft.training.pretrain.augment import augment, colour_matrices, jpeg, new_look, spoil, strange_names


def scenes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures and products: an opaque square left of the middle, on noise."""
    background, rgb = torch.rand(count, 3, 16, 16), torch.rand(count, 3, 1, 1).expand(-1, -1, 16, 16)
    alpha = torch.zeros(count, 1, 16, 16)
    alpha[..., 4:12, 2:7] = 1
    product = torch.cat([rgb, alpha], dim=1)
    return paste(background, product), product


def test_the_product_stays_where_it_is_in_its_picture() -> None:
    torch.manual_seed(0)
    image, product = new_look(*scenes(64))
    assert ((image - product[:, :3]) * product[:, 3:]).abs().max() < 1e-6
    assert image.min() >= 0 and image.max() <= 1


def test_each_change_strikes_about_half() -> None:
    torch.manual_seed(1)
    before, product = scenes(400)
    image, moved = new_look(before, product)
    mirrored = (moved[:, 3:] != product[:, 3:]).flatten(1).any(1)
    recoloured = (moved[:, :3].amax((2, 3)) != product[:, :3].amax((2, 3))).any(1)
    untouched = (image == before).flatten(1).all(1)
    assert 0.4 < mirrored.float().mean() < 0.6
    assert 0.4 < recoloured.float().mean() < 0.6
    assert 0.06 < untouched.float().mean() < 0.2  # an eighth


def test_a_turn_of_the_hue_keeps_grey_grey_up_to_the_gains() -> None:
    torch.manual_seed(2)
    grey = (colour_matrices(200) @ torch.full((3,), 0.5)).log() - torch.tensor(0.5).log()
    assert grey.std() < 0.25  # of log gains: 0.15 for all channels, 0.08 for each
    assert grey.mean().abs() < 0.05


def test_strange_names_leave_the_centimetres_alone() -> None:
    torch.manual_seed(3)
    begin, comma, pad = 1, 7, 0
    ids = torch.tensor([[begin, 50, 51, 52, comma, 20, 21, 22, pad]]).repeat(400, 1)
    found = strange_names(ids, comma, vocab_size=1000)
    changed = found != ids
    assert not changed[:, 0].any() and not changed[:, 4:].any()
    assert 0.2 < changed[:, 1:4].float().mean() < 0.3  # half of the tokens of half of the captions
    assert 0.4 < (~changed.any(1)).float().mean() < 0.65


def test_a_spoilt_picture_is_nearly_the_same() -> None:
    """An eighth is as it was but for the shift (three quarters are not shifted); no pixel leaves [0, 1]."""
    torch.manual_seed(4)
    before = scenes(400)[0]
    after = spoil(before)
    untouched = (after == before).flatten(1).all(1).float().mean()
    assert 0.06 < untouched < 0.13  # 1/2 * 3/4 * 1/2 * 1/2 = 9 %, and shifts by nothing
    assert after.min() >= 0 and after.max() <= 1
    assert (after - before).abs().mean() < 0.2  # of noise, which JPEG and shifts change most


def test_jpeg_is_closer_at_a_higher_quality() -> None:
    torch.manual_seed(5)
    picture = torch.rand(1, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3).expand(2, -1, -1, -1)
    found = jpeg(picture, torch.tensor([20, 98]))
    poor, good = (found - picture).abs().mean((1, 2, 3))
    assert 0 < good < 0.04 and good < 0.7 * poor


def test_an_augmented_product_is_not_spoilt() -> None:
    torch.manual_seed(6)
    image, product = augment(*scenes(8))
    assert image.shape == (8, 3, 16, 16)
    assert set(product[:, 3:].unique().tolist()) == {0.0, 1.0}


def test_maps_beside_the_product_are_mirrored_with_the_picture_and_nothing_else():
    torch.manual_seed(0)
    image, product = scenes(32)
    saliency = image[:, :1].clone()
    _, beside = new_look(image, torch.cat([product, saliency], dim=1))
    moved = beside[:, 4:]
    same = (moved == saliency).flatten(1).all(1)
    mirrored = (moved == saliency.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all() and same.any() and mirrored.any()
