"""The config of `rfft rfnet train`: the paper's settings, and mistakes that are named with their fix."""

from pathlib import Path

import pytest

from rfft.config import load as generator_config
from rfft.config.load import to_yaml
from rfft.errors import UserError
from rfft.rfnet.config import load_config
from rfft.rfnet.evaluate import EXPORT

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("rfnet_*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_valid_and_reads_back_equal(path, tmp_path):
    config = load_config(path)
    assert config.run.name == path.stem
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config
    assert load_config(path.stem) == config  # by name


def test_the_papers_settings():
    config = load_config("rfnet_paper")
    network, optimizer = config.rfnet, config.optimizer
    assert (network.image_size, network.width, network.heads, network.n1, network.n2) == (384, 384, 8, 1, 3)
    assert (network.image_encoder.weights, network.drop) == ("microsoft/resnet-50", [])
    assert (optimizer.lr, optimizer.drop_at, optimizer.drop_factor) == (1e-4, [5], 0.1)
    assert config.trainer.epochs == 10


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("sd*.yaml")), ids=lambda path: path.stem)
def test_real_bases_take_the_rfnet_that_training_writes_with_its_maps(path):
    rfnet, reward = load_config("rfnet_paper"), generator_config.load_config(path).reward
    assert Path(reward.rfnet) == Path(rfnet.run.out) / rfnet.run.name / EXPORT
    assert (reward.depth, reward.saliency) == (rfnet.maps.depth, rfnet.maps.saliency)
    assert not rfnet.maps.known


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train=[]", "data.train is empty: name folders"),
        ("rfnet.drop=[d,x]", "rfnet.drop names x: choose from o, g, d, s, c"),
        ("rfnet.drop=[o,g,d,s]", "keep one of o, g, d, s"),
        ("rfnet.width=100", "rfnet.width=100 is no multiple of rfnet.heads=8"),
        ("rfnet.image_encoder.depths=[1]", "lists of one length"),
        ("rfnet.text_encoder.heads=5", "rfnet.text_encoder.hidden_size=768 is no multiple of its heads=5"),
        ("rfnet.text_encoder.weights=null", "rfnet.text_encoder.tokenizer=rf-tiny-rfnet"),
        ("optimizer.betas=[0.9]", "two numbers in [0, 1)"),
        ("run.name=a/b", "plain folder name"),
        ("tracker.project=a/b", "tracker.project 'a/b' must be a plain name"),
        ("objective.labels=both", "expected one of ['fine', 'coarse']"),
        ("data.validation_share=0.9", "data.validation_share is 0.9; it must be at most 0.5"),
        (
            "data.train=[adworld:rfnet]",
            "must name one source of AdWorld's scenes each: data.validation=",
        ),
        ("objective.attributes=0.1", "objective.attributes needs AdWorld's scenes"),
        ("objective.regions=0.5", "objective.regions needs AdWorld's scenes"),
        ("rfnet.n3=1", "unknown key 'rfnet.n3'; known in rfnet: init, image_size"),
    ],
)
def test_a_mistake_is_named(override, message):
    with pytest.raises(UserError, match=r"^[^\n]+$") as error:
        load_config("rfnet_paper", [override])
    assert message in str(error.value)


def test_the_config_of_a_generators_training_is_named_as_such():
    with pytest.raises(UserError, match="^tiny: a config of a generator's training; run: rfft train tiny$"):
        load_config("tiny")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.validation=[adworld:holdout]", "AdWorld's scenes are train, val, test, rfnet"),
        ("data.scenes.shares=[0.5,0.6]", "must be three shares whose sum is 1"),
        ("objective.labels=coarse", "set objective.labels=fine"),
        ("maps.known=true", "set maps.known=false"),
    ],
)
def test_a_mistake_about_scenes_is_named(override, message):
    with pytest.raises(UserError, match=r"^[^\n]+$") as error:
        load_config("rfnet_embedded", [override])
    assert message in str(error.value)
