"""What people said becomes targets, weights and a loss, by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from rfft.errors import UserError
from rfft.feedback.dataset import FeedbackDataset, targets_of
from rfft.feedback.folder import Record
from rfft.feedback.vote_store import VoteStore
from rfft.feedback.votes import Picture, Vote, rows, write_rows
from rfft.rfnet.evaluate import agreement as agreement_with
from rfft.rfnet.evaluate import report
from rfft.rfnet.learner import weighted_loss
from rfft.rfnet.votes import VotedPicture, agreement, read_votes, target_of

A, SPACE, SIZE, BROKEN = "available", "space_mismatch", "size_mismatch", "unsuitable"


def votes(*answers: list[str], picture: str = "p") -> list[Vote]:
    return [Vote("labels", picture, f"rater {i}", {"labels": answer}) for i, answer in enumerate(answers)]


@pytest.mark.parametrize(
    ("answers", "target", "weight"),
    [
        ([[A], [A], [A]], (1, 0, 0, 0, 0), 1),
        ([[A], [A], [SPACE]], (2 / 3, 1 / 3, 0, 0, 0), 5 / 9),  # (2/3 + 2/3 + 1/3) / 3
        ([[A], [SPACE], [SIZE]], (1 / 3, 1 / 3, 1 / 3, 0, 0), 1 / 3),
        ([[SPACE, SIZE], [SPACE, SIZE]], (0, 1 / 2, 1 / 2, 0, 0), 1),  # two faults share what a rater gives
        ([[SPACE, SIZE], [SPACE]], (0, 3 / 4, 1 / 4, 0, 0), 3 / 4),
        ([[A], [A], [BROKEN]], (1, 0, 0, 0, 0), 5 / 9),  # who calls it unsuitable has no say in the target
    ],
)
def test_targets_and_weights(answers: list[list[str]], target: tuple[float, ...], weight: float) -> None:
    given = votes(*answers)
    assert target_of(given) == pytest.approx(target)
    assert agreement(given) == pytest.approx(weight)


def test_the_loss_of_shares() -> None:
    """p = (1/4, 3/4); people say half each, of classes that weigh 2 and 1, and the picture weighs 0.5."""
    logits, shares = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[0.5, 0.5]])
    found = weighted_loss(logits, shares, torch.tensor([2.0, 1.0]), of_picture=torch.tensor([0.5]))
    assert found.item() == pytest.approx(0.5 * 1.5 * (0.5 * math.log(4) + 0.5 * math.log(4 / 3)))


def test_agreement_with_people() -> None:
    """Verdicts available, size mismatch, and one that is not finite and agrees with nobody."""
    probabilities = torch.tensor([[0.6, 0.4, 0, 0, 0], [0.1, 0, 0.9, 0, 0], [math.nan] * 5])
    said = torch.tensor([[2 / 3, 1 / 3, 0, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0, 0], [1.0, 0, 0, 0, 0]])
    found = agreement_with(probabilities, said)
    assert found["agreement"] == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    assert found["agreement_available"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    metrics = report(probabilities[:2], said[:2])
    wanted = -(2 / 3 * math.log(0.6) + 1 / 3 * math.log(0.4))
    wanted -= (math.log(0.1) + math.log(1e-12) + math.log(0.9)) / 3
    assert metrics["loss"] == pytest.approx(wanted / 2, rel=1e-5)


def test_shares_are_made_coarse_and_labels_are_shares() -> None:
    record = Record(Path(), "a.png", 1, "cup", target=(0.25, 0.5, 0.25, 0, 0), weight=0.5)
    sure = Record(Path(), "b.png", 2, "cup")
    fine = FeedbackDataset([record, sure], 8, {}).targets
    assert [t.tolist() for t in fine] == [[0.25, 0.5, 0.25, 0, 0], [0, 0, 1, 0, 0]]
    coarse = FeedbackDataset([record, sure], 8, {}, coarse=True).targets
    assert [t.tolist() for t in coarse] == [[0.25, 0.75], [0, 1]]
    assert targets_of({"label": torch.tensor([1])}, 3).tolist() == [[0, 1, 0]]  # shards know labels alone


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Pictures p (two of three say available), q (unsuitable to half) and r (nobody was asked)."""
    opened = VoteStore(tmp_path / "feedback.db", create=True)
    opened.add_pictures(
        Picture(name, tmp_path / f"images/{name}.png", tmp_path / f"products/{name}.png", "a cup", "on wood")
        for name in "pqr"
    )
    for vote in (*votes([A], [SPACE], [A]), *votes([BROKEN], [A], picture="q")):
        opened.add_vote(vote)
    opened.add_vote(Vote("labels", "p", "rater 0", {"labels": [SIZE]}, kind="repeat"))
    undone = opened.add_vote(Vote("labels", "p", "rater 3", {"labels": [SIZE]}))
    opened.undo(undone.id or 0)
    opened.close()
    return tmp_path / "feedback.db"


def test_a_store_and_its_export_are_the_same_pictures(store: Path) -> None:
    (record,) = read_votes(f"votes:{store}")
    assert isinstance(record, VotedPicture)
    assert (record.label, record.caption, record.prompt) == (0, "a cup", "on wood")
    assert record.target == pytest.approx((2 / 3, 1 / 3, 0, 0, 0)) and record.weight == pytest.approx(5 / 9)
    assert record.files() == (store.parent / "images/p.png", store.parent / "products/p.png")
    opened = VoteStore(store)
    for name in ("votes.jsonl", "votes.parquet"):
        write_rows(store.with_name(name), rows(opened.votes(undone=True), opened.pictures()))
        (again,) = read_votes(f"votes:{store.with_name(name)}")
        assert vars(again) | {"folder": record.folder} == vars(record)


def test_what_rfnet_cannot_learn_from_is_one_line(store: Path, tmp_path: Path) -> None:
    opened = VoteStore(tmp_path / "empty.db", create=True)
    with pytest.raises(UserError, match=r"empty\.db: no picture in it is labelled yet"):
        read_votes(f"votes:{tmp_path / 'empty.db'}")
    opened.add_pictures([Picture("p", tmp_path / "p.png", caption="a cup")])
    opened.add_vote(Vote("labels", "p", "anna", {"labels": [A]}))
    with pytest.raises(UserError, match=r"p\.png: its product is not known"):
        read_votes(f"votes:{tmp_path / 'empty.db'}")
    (tmp_path / "votes.jsonl").write_text('{"task": "labels"}\n')
    with pytest.raises(UserError, match="row 1 is no vote"):
        read_votes(f"votes:{tmp_path / 'votes.jsonl'}")
