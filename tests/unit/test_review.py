"""Who is asked what, and how far people agree: by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rfft.feedback.votes import Picture, Vote
from rfft.review.agreement import figures, fleiss, gsb, krippendorff_alpha
from rfft.review.exports import shares
from rfft.review.questions import Question, as_seen, swapped
from rfft.review.queue import GOLD_EVERY, REPEAT_EVERY, Queue, Settings

FAULTS = ("space_mismatch", "size_mismatch")


def pictures(count: int, **known: object) -> dict[str, Picture]:
    return {f"p{i}": Picture(f"p{i}", Path(f"p{i}.png"), **known) for i in range(count)}  # type: ignore[arg-type]


def label(name: str, rater: str, *labels: str, **known: object) -> Vote:
    return Vote("labels", name, rater, {"labels": list(labels or ("available",))}, **known)  # type: ignore[arg-type]


def answer_all(queue: Queue, rater: str) -> list[Question]:
    asked: list[Question] = []
    while (question := queue.next(rater)) is not None:
        asked.append(question)
        queue.answered(label(question.left, rater, kind=question.kind, id=len(asked)))
    return asked


def test_each_picture_goes_to_k_raters_and_to_none_twice() -> None:
    queue = Queue(Settings("labels", raters=2, measure_raters=False), pictures(5), [])
    asked = {rater: [q.left for q in answer_all(queue, rater)] for rater in ("anna", "ben", "cleo")}
    assert asked == {"anna": [f"p{i}" for i in range(5)], "ben": [f"p{i}" for i in range(5)], "cleo": []}
    assert queue.progress() == {"wanted": 10, "there": 10}


def test_what_is_shown_to_k_raters_is_not_shown_to_another() -> None:
    queue = Queue(Settings("labels", raters=1, measure_raters=False), pictures(2), [])
    assert [queue.next(rater).left for rater in ("anna", "ben")] == ["p0", "p1"]  # type: ignore[union-attr]
    assert queue.next("cleo") is None
    assert queue.next("anna").left == "p0"  # type: ignore[union-attr]  # who comes back is asked again


def test_gold_and_repeats_come_in_between_and_count_for_no_picture() -> None:
    known = pictures(40) | {"g": Picture("g", Path("g.png"), label="available")}
    queue = Queue(Settings("labels", raters=1), known, [])
    asked = answer_all(queue, "anna")
    assert asked[GOLD_EVERY - 1] == Question("g", kind="gold")
    assert asked[REPEAT_EVERY - 1] == Question("p0", kind="repeat")
    assert sorted(q.left for q in asked if q.kind == "plain") == sorted(pictures(40))


def test_an_undone_vote_is_asked_for_again() -> None:
    queue = Queue(Settings("labels", raters=1, measure_raters=False), pictures(1), [])
    vote = label("p0", "anna", id=1)
    queue.answered(vote)
    assert queue.next("anna") is None
    queue.undone(vote)
    assert queue.next("anna") == Question("p0")


def test_what_rfnet_is_least_sure_of_comes_first() -> None:
    known = pictures(3)
    for name, p in (("p0", 0.9), ("p1", 0.4), ("p2", 0.6)):
        known[name] = replace(known[name], probabilities={"available": p, "size_mismatch": 1 - p})
    queue = Queue(Settings("labels", uncertain_first=True, measure_raters=False), known, [])
    assert [q.left for q in answer_all(queue, "anna")] == ["p1", "p2", "p0"]


def test_a_second_round_asks_what_raters_or_they_and_rfnet_disagree_on() -> None:
    sure = {"available": 0.9, "size_mismatch": 0.1}
    known = pictures(3, probabilities=sure)
    votes = [
        *(label("p0", rater) for rater in ("anna", "ben")),  # all agree
        label("p1", "anna"),
        label("p1", "ben", "size_mismatch"),  # raters do not
        *(label("p2", rater, "size_mismatch") for rater in ("anna", "ben")),  # RFNet does not
    ]
    queue = Queue(Settings("labels", round=2, measure_raters=False), known, votes)
    assert [q.left for q in answer_all(queue, "anna")] == ["p1", "p2"]


def test_of_a_pair_the_loser_gives_way_until_the_rater_moves_on() -> None:
    known = pictures(4, group="cup") | {
        name: replace(picture, id=name, group="chair")
        for name, picture in zip(("q0", "q1"), pictures(2).values(), strict=True)
    }
    queue = Queue(Settings("pairs"), known, [])

    def vote(better: str) -> None:
        question = queue.next("anna")
        assert question is not None
        queue.answered(Vote("pairs", question.left, "anna", {"better": better}, right=question.right))

    assert queue.next("anna") == Question("p0", "p1")
    vote("right")
    assert queue.next("anna") == Question("p1", "p2")
    vote("same")
    assert queue.next("anna") == Question("p1", "p3")
    queue.move_on("anna")
    assert queue.next("anna") == Question("q0", "q1")
    vote("left")
    assert queue.next("anna") is None
    assert queue.progress() == {"wanted": 6, "there": 2}


def test_a_pair_goes_on_after_undo_and_a_new_start_where_it_was() -> None:
    known = pictures(4, group="cup")
    votes = [
        Vote("pairs", "p0", "anna", {"better": "right"}, right="p1", id=1),
        Vote("pairs", "p1", "anna", {"better": "left"}, right="p2", id=2),
        Vote("pairs", "gone", "ben", {"better": "left"}, right="lost", id=3),  # not served any more
    ]
    queue = Queue(Settings("pairs"), known, votes)
    assert queue.next("anna") == Question("p1", "p3")
    queue.undone(votes[1])
    assert queue.next("anna") == Question("p1", "p2")
    queue.answered(votes[1])
    assert queue.next("anna") == Question("p1", "p3")
    assert queue.next("ben") == Question("p0", "p1")


def test_undoing_a_repeat_leaves_the_first_answer() -> None:
    queue = Queue(Settings("labels", raters=1), pictures(1), [label("p0", "anna", id=1)])
    again = label("p0", "anna", kind="repeat", id=2)
    queue.answered(again)
    queue.undone(again)
    assert queue.next("anna") is None and queue.progress() == {"wanted": 1, "there": 1}


def test_gsb_pairs_what_two_runs_painted_in_one_place() -> None:
    known = {
        f"{run}{i}": Picture(f"{run}{i}", Path("x.png"), place=f"cup/{i}", source=run)
        for run in ("base", "tuned")
        for i in range(2)
    }
    queue = Queue(Settings("gsb"), known | {"alone": Picture("alone", Path("y.png"), place="z")}, [])
    assert queue.plain == [Question("base0", "tuned0"), Question("base1", "tuned1")]
    sides = [swapped("gsb", queue.plain[0], f"rater {i}") for i in range(64)]
    assert 16 < sum(sides) < 48  # blinded
    answer = {"overall": "good", "quality": "same", "realism": "bad"}
    assert as_seen("gsb", answer, turned=True) == {"overall": "bad", "quality": "same", "realism": "good"}


def test_kappa_and_alpha_by_hand() -> None:
    """Two raters, four pictures, one disagreement: 3 + 1 against 2 + 2 answers.

    Fleiss: P = (1 + 1 + 1 + 0) / 4 = 0.75, P_e = (5/8)^2 + (3/8)^2 = 0.53125, kappa = 0.4667.
    Krippendorff: D_o = 2 / 8, D_e = 2 x 5 x 3 / (8 x 7), alpha = 1 - 0.25 / 0.5357 = 0.5333.
    """
    votes = [label(f"p{i}", "anna", *(("size_mismatch",) if i == 3 else ())) for i in range(4)]
    votes += [label(f"p{i}", "ben", *(("size_mismatch",) if i > 1 else ())) for i in range(4)]
    assert fleiss("labels", votes) == pytest.approx(0.4667, abs=1e-4)
    assert krippendorff_alpha("labels", votes) == pytest.approx(0.5333, abs=1e-4)
    assert fleiss("labels", votes[:4]) is None  # one rater alone
    assert krippendorff_alpha("labels", [v for v in votes if v.left == "p0"]) is None  # all say one thing


def test_figures_of_raters_and_rfnet_by_hand() -> None:
    known = pictures(3, probabilities={"available": 0.2, "size_mismatch": 0.8})
    known["p2"] = replace(known["p2"], label="size_mismatch", probabilities=None)
    votes = [
        label("p0", "anna"),
        label("p0", "ben"),
        label("p1", "anna", "size_mismatch"),
        label("p1", "anna", "size_mismatch", kind="repeat"),
        label("p2", "ben", "available", kind="gold"),
    ]
    found = figures("labels", votes, known)
    anna, ben = found["raters"]["anna"], found["raters"]["ben"]
    assert (anna["with_majority"]["share"], anna["with_self"]["share"], anna["with_gold"]) == (1.0, 1.0, None)
    assert (ben["with_gold"]["share"], ben["with_gold"]["of"]) == (0.0, 1)
    assert found["rfnet"]["agree"]["of"] == 2 and found["rfnet"]["agree"]["share"] == 0.5
    assert found["rfnet"]["confusion"][0][2] == 1  # people: available, RFNet: size mismatch


def test_gsb_score_by_hand() -> None:
    """6 good, 2 same, 2 bad: 4 / 10, its variance (0.8 - 0.4^2) / 10; sign test 2 (28 + 8 + 1) / 256."""
    words = ["good"] * 6 + ["same"] * 2 + ["bad"] * 2
    votes = [Vote("gsb", f"a{i}", "anna", {"overall": word}, right=f"b{i}") for i, word in enumerate(words)]
    found = gsb(votes, "overall")
    assert found is not None and found["score"] == pytest.approx(0.4)
    assert found["sign_test_p"] == pytest.approx(2 * 37 / 256)
    assert found["interval"] == pytest.approx([0.4 - 1.96 * 0.064**0.5, 0.4 + 1.96 * 0.064**0.5])
    assert gsb(votes, "realism") is None


def test_several_faults_share_a_vote() -> None:
    votes = [label("p0", "anna", *FAULTS), label("p0", "ben", "space_mismatch")]
    found = shares(votes)
    assert (found["space_mismatch"], found["size_mismatch"], found["available"]) == (0.75, 0.25, 0.0)
