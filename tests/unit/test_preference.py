"""Learning people's opinions: each formula by hand, and votes of every form as examples."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rfft.errors import UserError
from rfft.feedback.vote_store import VoteStore
from rfft.feedback.votes import Picture, Vote, rows, write_rows
from rfft.metrics.features import load_efficientnet_lite0
from rfft.metrics.preference import accuracy, best_tie
from rfft.preference.losses import frequency_weights, preference_loss, squared_emd
from rfft.preference.opinions import Opinions, Pair, read_pairs, read_scores, split
from rfft.rewards.encoders import ClipPictures, EfficientNetPictures, Texts, load_halves, shapes
from rfft.rewards.opinion import (
    AestheticConfig,
    AestheticNetwork,
    PreferenceConfig,
    PreferenceNetwork,
    expected_score,
    relevant,
)
from rfft.rewards.people import Preference, load_aesthetic, load_pickscore, tokens_of
from rfft.rewards.preference import PickScore


def test_the_loss_is_the_divergence_from_people() -> None:
    """Scores 2 and 1: p = e / (1 + e). A tie costs ln 2's entropy less than its cross-entropy."""
    first, second = torch.tensor([2.0, 2.0, 2.0, 3.0]), torch.tensor([1.0, 1.0, 1.0, 3.0])
    found = preference_loss(first, second, torch.tensor([1.0, 0.0, 0.5, 0.5]))
    p = math.e / (1 + math.e)
    tie = -0.5 * (math.log(p) + math.log(1 - p)) - math.log(2)
    assert found.tolist() == pytest.approx([-math.log(p), -math.log(1 - p), tie, 0], abs=1e-6)


def test_squared_earth_movers_distance() -> None:
    """All on the first of three classes against all on the last one: cumulated 1, 1, 1 and 0, 0, 1."""
    logits = torch.tensor([[100.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    shares = torch.tensor([[0.0, 0.0, 1.0], [1 / 3, 1 / 3, 1 / 3]])
    assert squared_emd(logits, shares).tolist() == pytest.approx([2 / 3, 0], abs=1e-6)


def test_expected_score() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.0, 0.0, 0.0, 0.5], [0.0, 0.0, 0.0, 1.0, 0.0]]))
    assert expected_score(logits).tolist() == pytest.approx([3, 4])


def test_weights_are_inverse_to_frequency() -> None:
    """a occurs twice, b and c once: (1/2 + 1) / 2 each; d with itself twice: 1/2. The mean is 2/3."""
    found = frequency_weights(["a", "c", "d"], ["b", "a", "d"])
    assert found.tolist() == pytest.approx([0.75 * 1.5, 0.75 * 1.5, 0.5 * 1.5])


def test_accuracy_gives_half_a_point_for_one_sided_ties() -> None:
    first, share = np.array([0.9, 0.9, 0.52, 0.52, 0.2, np.nan]), np.array([1.0, 0.0, 0.5, 1.0, 0.5, 1.0])
    # right, wrong, both ties, the machine's tie alone, people's tie alone, no number
    assert accuracy(first, share, 0.1) == pytest.approx((1 + 0 + 1 + 0.5 + 0.5 + 0) / 6)
    assert accuracy(first, share, 0.0) == pytest.approx((1 + 0 + 0.5 + 1 + 0.5 + 0) / 6)


def test_the_threshold_of_ties_is_the_smallest_of_the_best() -> None:
    """Margins 0.8 decided, 0.1 a tie: anything above 0.1 and up to 0.8 is right throughout."""
    found = best_tie(np.array([0.9, 0.1, 0.55]), np.array([1.0, 0.0, 0.5]))
    assert found == pytest.approx(0.105)


def test_a_condition_hides_words_that_it_does_not_speak_of() -> None:
    """The condition is the first axis; its nearest word is at 0.8, so words from 0.24 on are read."""
    words = torch.tensor([[[0.8, 0.6], [0.28, 0.96], [0.0, 1.0], [1.0, 0.0]]])
    condition = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    is_word, is_condition = torch.tensor([[True, True, True, False]]), torch.tensor([[True, False]])
    assert relevant(words, condition, is_word, is_condition).tolist() == [[True, True, False, False]]


# ---- networks ----


def test_one_dimension_of_clip_is_pickscore(clip: Path, tmp_path: Path) -> None:
    """Before training, with the scale that CLIP has; forward and backward, saved and loaded."""
    pictures, texts = shapes(str(clip))
    network = PreferenceNetwork(PreferenceConfig(pictures, texts, {"overall": "overall"}))
    load_halves(str(clip), network.pictures, network.texts)
    published = PickScore(str(clip))
    network.logit_scale.data = published.clip.logit_scale.detach().clone()
    network.save_pretrained(tmp_path / "network")
    published.tokenizer.save_pretrained(tmp_path / "network")
    own, prompts = load_pickscore(str(tmp_path / "network")), ["a park", "a long wall in grey light"]
    gradients, found = [], []
    for scorer in (own, published):
        image = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0)).requires_grad_()
        score = scorer.score(image, prompts)
        found.append(score.detach())
        score.sum().backward()
        gradients.append(image.grad)
    torch.testing.assert_close(*found)
    torch.testing.assert_close(*gradients)


def test_the_embedded_encoder_is_in_eval_mode_from_the_start() -> None:
    """Or batch norm would see the batch, and remember it: pictures are encoded before anything is trained."""
    pictures = EfficientNetPictures()
    load_halves("embedded", pictures, None)
    image = pictures.prepare(torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    together = pictures(image)
    torch.testing.assert_close(pictures(image[:1]), together[:1], rtol=1e-4, atol=1e-4)
    known = load_efficientnet_lite0().state_dict()
    assert all(tensor.equal(known[name]) for name, tensor in pictures.state_dict().items())


def test_dimensions_are_told_apart(clip: Path) -> None:
    pictures, texts = shapes(str(clip))
    torch.manual_seed(0)
    words = {"overall": "park", "quality": "light"}
    network = PreferenceNetwork(PreferenceConfig(pictures, texts, words, heads=2)).eval()
    tokenizer = PickScore(str(clip)).tokenizer
    image, prompts = torch.rand(2, 3, 32, 32), ["a park", "a wall"]
    scores = [Preference(network, tokenizer, name).score(image, prompts) for name in words]
    assert not torch.allclose(*scores)
    # Padding changes nothing, and features that were kept are as good as pixels.
    alone = Preference(network, tokenizer).score(image[:1], prompts[:1])
    torch.testing.assert_close(alone, scores[0][:1])
    kept = network.seen(network.prepare(image))
    ids = [tokens_of(tokenizer, some, "cpu") for some in (prompts, ["park", "park"])]
    torch.testing.assert_close(network(kept, *ids), scores[0])
    with pytest.raises(UserError, match="dimension sharpness: it has learned overall, quality"):
        Preference(network, tokenizer, "sharpness")


def test_halves_are_clips_own(clip: Path) -> None:
    model = PickScore(str(clip)).clip
    shape = shapes(str(clip))
    pictures, texts = ClipPictures(shape[0]), Texts(shape[1], projects=True)
    load_halves(str(clip), pictures, texts)
    image = torch.rand(2, 3, 32, 32)
    seen = model.vision_model(
        (image - torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None])
        / torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    )
    torch.testing.assert_close(pictures(image), model.visual_projection(seen.pooler_output))
    ids, mask = tokens_of(PickScore(str(clip)).tokenizer, ["a park", "wall"], "cpu")
    read = model.text_projection(model.text_model(input_ids=ids, attention_mask=mask).pooler_output)
    torch.testing.assert_close(texts(ids, mask)[:, 0], read)


def test_an_aesthetic_network_is_a_reward(clip: Path, tmp_path: Path) -> None:
    network = AestheticNetwork(AestheticConfig(shapes(str(clip))[0], ["floats"], width=8)).eval()
    network.save_pretrained(tmp_path)
    reward, image = load_aesthetic(model=str(tmp_path)), torch.rand(2, 3, 32, 32)
    score = reward.score(image, ["", ""])
    assert ((score >= 1) & (score <= 5)).all()
    torch.testing.assert_close(score, expected_score(network(network.prepare(image))[0]))
    with pytest.raises(UserError, match="nowhere is none that `rfft aesthetic train` wrote"):
        load_aesthetic(model="nowhere")
    with pytest.raises(UserError, match="leave `head` out"):
        load_aesthetic("head.pth", str(tmp_path))


# ---- examples ----


@pytest.fixture
def store(tmp_path: Path) -> VoteStore:
    """Three pictures of one prompt, with votes of two raters."""
    opened = VoteStore(tmp_path / "feedback.db", create=True)
    for i in range(3):
        Image.new("RGB", (8, 8), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")
    opened.add_pictures(Picture(str(i), tmp_path / f"{i}.png", prompt="a park") for i in range(3))
    for vote in (
        Vote("pairs", "0", "ann", {"better": "left"}, "1"),
        Vote("pairs", "0", "bob", {"better": "same"}, "1"),
        Vote("pairs", "0", "bob", {"better": "right"}, "1", kind="repeat"),  # hidden: it measures bob
        Vote("pairs", "1", "ann", {"better": "left"}, "2"),
        Vote("pairs", "1", "ann", {"better": "right"}, "2"),  # she thought again
        Vote("gsb", "0", "ann", {"overall": "good", "quality": "bad"}, "2"),
        Vote("scores", "0", "ann", {"score": 5, "defects": []}),
        Vote("scores", "0", "bob", {"score": 4, "defects": ["floats"]}),
    ):
        opened.add_vote(vote)
    return opened


@pytest.mark.parametrize("form", ["feedback.db", "votes.jsonl", "votes.parquet"])
def test_votes_become_examples(store: VoteStore, tmp_path: Path, form: str) -> None:
    if form != "feedback.db":
        write_rows(tmp_path / form, rows(store.votes(), store.pictures()))
    found = read_pairs(tmp_path / form, ["overall", "quality"])
    assert found.examples == [
        Pair("0", "1", "a park", 0.75, "overall", 2),
        Pair("1", "2", "a park", 0.0, "overall", 1),
        Pair("0", "2", "a park", 1.0, "overall", 1),
        Pair("0", "2", "a park", 0.0, "quality", 1),
    ]
    assert set(found.pictures) == {"0", "1", "2"} and found.pictures["1"] == tmp_path / "1.png"
    [scored] = read_scores(tmp_path / form).examples
    assert (scored.scores, scored.defects) == ((5, 4), ((), ("floats",)))


def test_pick_a_pics_columns(tmp_path: Path) -> None:
    content = b"not looked at here"
    published = {
        "caption": "a park",
        "jpg_0": content,
        "jpg_1": content,
        "image_0_uid": "u",
        "image_1_uid": "v",
    }
    labels = [(1.0, 0.0, True), (0.5, 0.5, True), (None, None, False)]
    found = [
        published | {"label_0": a, "label_1": b, "has_label": known, "are_different": a != b}
        for a, b, known in labels
    ]
    write_rows(tmp_path / "pickapic.parquet", found)
    read = read_pairs(tmp_path / "pickapic.parquet", ["overall"])
    assert read.examples == [Pair("u", "v", "a park", 0.75, "overall", 2)]
    assert read.pictures == {"u": content, "v": content}


def change(**changes: object) -> Callable[[dict], dict]:
    return lambda row: row | changes


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (change(answer='{"better": "up"}'), "vote 1 cannot be used: one of left, right, same"),
        (change(answer="{"), "vote 1 cannot be used"),
        (change(left_path=None), "vote 1 cannot be used: its left picture is not known"),
        (change(task="labels"), "no pair has been compared here in overall"),
        (lambda row: {"label_0": 0.7, "label_1": 0.7}, "label_0=0.7 and label_1=0.7 must be 1 and 0"),
        (lambda row: {"caption": "x"}, "'label_0' is missing"),
    ],
)
def test_votes_that_cannot_be_used(
    store: VoteStore, tmp_path: Path, changed: Callable[[dict], dict], message: str
) -> None:
    row = changed(rows(store.votes("pairs"), store.pictures())[0])
    (tmp_path / "votes.jsonl").write_text(json.dumps(row, default=str) + "\n")
    with pytest.raises(UserError, match=message):
        read_pairs(tmp_path / "votes.jsonl", ["overall"])


def test_all_pairs_of_a_prompt_fall_on_one_side() -> None:
    pairs = [Pair(str(i), str(i + 1), f"prompt {i % 40}", 1.0) for i in range(400)]
    training, validation = split(Opinions(pairs, {}), 0.25)
    assert {p.prompt for p in training}.isdisjoint({p.prompt for p in validation})
    assert 50 < len(validation) < 150
    with pytest.raises(UserError, match="name other votes with data.validation"):
        split(Opinions(pairs[:1], {}), 0.25)


def test_gradients_reach_the_picture(clip: Path) -> None:
    pictures, texts = shapes(str(clip))
    network = PreferenceNetwork(PreferenceConfig(pictures, texts, {"a": "park", "b": "light"}, heads=2))
    reward = Preference(network.requires_grad_(False).eval(), PickScore(str(clip)).tokenizer)
    image: Tensor = torch.rand(1, 3, 32, 32, requires_grad=True)
    reward.score(image, ["a park"]).sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
