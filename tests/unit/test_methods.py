"""The names of methods in tables and figures: every combination of objective, regularizer and guidance."""

from itertools import product

import pytest

from rfft.evaluation.methods import method_of, training_method

NAMES = {  # by objective, regularizer; with guidance, without
    ("x0_hat", "none"): ("RFFT, no regularizer", "ReFL"),
    ("x0_hat", "kl"): ("RFFT, KL, beta 0.5", "RFFT, KL, beta 0.5, no guidance"),
    ("x0_hat", "cc"): ("RFFT, CC, beta 0.5", "RFFT, CC, beta 0.5, no guidance"),
    ("draft", "none"): ("DRaFT-4", "DRaFT-4, no guidance"),
    ("draft", "kl"): ("DRaFT-4, KL, beta 0.5", "DRaFT-4, KL, beta 0.5, no guidance"),
    ("draft", "cc"): ("DRaFT-4, CC, beta 0.5", "DRaFT-4, CC, beta 0.5, no guidance"),
    ("drtune", "none"): ("DRTune", "DRTune, no guidance"),
    ("drtune", "kl"): ("DRTune, KL, beta 0.5", "DRTune, KL, beta 0.5, no guidance"),
    ("drtune", "cc"): ("DRTune, CC, beta 0.5", "DRTune, CC, beta 0.5, no guidance"),
}


def config(use: str, regularizer: str, own: float | None, rollout: float = 3.0) -> dict:
    objective = {"use": use, "regularizer": regularizer, "beta": 0.5, "guidance_scale": own}
    return {"objective": objective, "rollout": {"grad_steps": 4, "guidance_scale": rollout}}


@pytest.mark.parametrize(("use", "regularizer"), product(("x0_hat", "draft", "drtune"), ("none", "kl", "cc")))
def test_every_combination_has_a_name_of_its_own(use, regularizer):
    guided, unguided = NAMES[use, regularizer]
    assert training_method(config(use, regularizer, None)) == guided
    assert training_method(config(use, regularizer, 5.0, rollout=1.0)) == guided
    assert training_method(config(use, regularizer, 1.0)) == unguided
    assert training_method(config(use, regularizer, None, rollout=1.0)) == unguided


def test_names_differ():
    names = [name for pair in NAMES.values() for name in pair]
    assert len(set(names)) == len(names) == 18


@pytest.mark.parametrize(
    ("use", "name"),
    [
        ("rfft", "RFFT, CC, beta 0.5"),
        ("refl", "RFFT, CC, beta 0.5"),
        ("draft-k", "DRaFT-4, CC, beta 0.5"),
        ("draft-lv", "DRaFT-LV, CC, beta 0.5"),
        ("flowbp-sparse", "FlowBP-Sparse, CC, beta 0.5"),
        ("flowbp-bridge", "FlowBP-Bridge, CC, beta 0.5"),
        ("leapalign", "LeapAlign, CC, beta 0.5"),
        ("ddpo", "DDPO, CC, beta 0.5"),
        ("nft", "DiffusionNFT, CC, beta 0.5"),
        ("dpo", "Diffusion-DPO, CC, beta 0.5"),
    ],
)
def test_named_objectives(use, name):
    assert training_method(config(use, "cc", None)) == name


def test_a_beta_that_is_held():
    found = config("rfft", "cc", None)
    found["objective"] |= {"beta": "auto", "drift": 0.02}
    assert training_method(found) == "RFFT, CC, beta auto at drift 0.02"


def test_parts_of_other_packages_have_their_own_names():
    assert training_method(config("ads.steps:Clicks", "ads.terms:Anchor", None)) == "Clicks, Anchor, beta 0.5"


@pytest.mark.parametrize(
    ("state", "metrics", "name"),
    [
        ("base", {}, "base"),
        ("base", {"quality_words": "sharp"}, "prompt engineering"),
        ("base", {"only_accepted": True}, "base, recurrent"),
        ("tuned", {"negative_prompt": ""}, "RFFT, CC, beta 0.5, prompt engineering"),
        ("tuned", {"only_accepted": True}, "RFFT, CC, beta 0.5, recurrent"),
    ],
)
def test_what_an_evaluation_adds(state, metrics, name):
    assert method_of(config("x0_hat", "cc", None), state, metrics) == name
