"""The config: what is shipped is valid, and every mistake is answered by one line that names the fix."""

from functools import partial
from pathlib import Path

import pytest

from rfft.config.checks import check_config
from rfft.config.load import config_from, find_config, load_config, to_yaml
from rfft.config.schema import Config
from rfft.errors import UserError
from rfft.evaluation.report import write_report
from rfft.utils.log import open_run

CONFIGS = Path(__file__).parents[2] / "configs"
ONE_LINE = r"^[^\n]+$"


def write(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "path",
    sorted(path for path in CONFIGS.glob("*.yaml") if not path.stem.startswith("rfnet_")),
    ids=lambda path: path.stem,
)
def test_every_shipped_config_is_valid(path):
    assert load_config(path).run.name == path.stem


def test_defaults_form_a_valid_config(tmp_path):
    config = load_config(write(tmp_path, ""))
    assert config == Config(run=config.run)
    assert config.run.name == "my"  # the file's name


def test_a_shipped_config_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("tiny") == load_config("configs/tiny.yaml") == load_config(CONFIGS / "tiny.yaml")


def test_overrides_win_over_the_file_in_their_order(tmp_path):
    path = write(tmp_path, "trainer: {steps: 5}\noptimizer: {lr: 5e-4}")
    config = load_config(
        path, ["trainer.steps=6", "trainer.steps=7", "model.train=[controlnet]", "data.count=null"]
    )
    assert (config.trainer.steps, config.optimizer.lr) == (7, 5e-4)
    assert config.model.train == ["controlnet"]


def test_a_mapping_is_read_like_a_file(tmp_path):
    settings = {"trainer": {"steps": 5}, "run.seed": 3, "run.out": tmp_path, "model.train": ["controlnet"]}
    text = f"trainer: {{steps: 6}}\nrun: {{seed: 3, out: {tmp_path}}}\nmodel: {{train: [controlnet]}}"
    config = config_from(settings, ["trainer.steps=6"])
    assert config.run.name == "run"
    assert config == load_config(write(tmp_path, text), ["run.name=run"])
    for wrong, message in [
        ({"trainer": {"step": 3}}, "settings: unknown key 'trainer.step'; did you mean 'trainer.steps'?"),
        ({"trainer": 3}, "settings: trainer is a group"),
        ({"model.train": "unet"}, "settings: model.train is a list, not one value: write [unet]"),
        ({"trainer.steps": "many"}, "settings: trainer.steps: Value 'many'"),
        ({"run.seed": object()}, "settings: run.seed: "),
        ({"trainer": {"steps": 0}}, "trainer.steps is 0; it must be at least 1"),
        ({"run.name": "../x"}, "plain folder name"),
        ({"rollout": {"last": 41}}, "lower rollout.last"),
    ]:
        with pytest.raises(UserError, match=r"^[^\n]+$") as error:
            config_from(wrong)
        assert message in str(error.value)


def test_words_that_yaml_takes_for_truth_values_stay_words_where_a_text_is_wanted(tmp_path):
    file = tmp_path / "words.yaml"
    file.write_text("trainer: {mixed_precision: no}\nrun: {name: on}\nmodel: {gradient_checkpointing: yes}\n")
    config = load_config(file, ["tracker.group=off"])
    assert (config.trainer.mixed_precision, config.run.name, config.tracker.group) == ("no", "on", "off")
    assert config.model.gradient_checkpointing is True
    assert load_config(file, ["trainer.mixed_precision=no"]).trainer.mixed_precision == "no"


def test_the_saved_config_reads_back_equal(tmp_path):
    config = load_config(CONFIGS / "tiny.yaml", ["tracker.tags=[a, b]", "trainer.max_minutes=2.5"])
    assert load_config(write(tmp_path, to_yaml(config))) == config


WRONG_OVERRIDES = [
    ("trainer.step=3", "command line: unknown key 'trainer.step'; did you mean 'trainer.steps'?"),
    ("beta=1", "command line: unknown key 'beta'; did you mean 'objective.beta'?"),
    ("optimizer.speed=1", "command line: unknown key 'optimizer.speed'; known in optimizer: lr, betas"),
    ("run.seed.x=3", "unknown key 'run.seed.x'; 'run.seed' is a single setting"),
    ("trainer.steps=many", "command line: trainer.steps: Value 'many'"),
    ("trainer.steps=", "trainer.steps: Incompatible value 'None'"),
    ("model.train=unet", "command line: model.train is a list, not one value: write model.train=[unet]"),
    (
        "reward.terms=pickscore",
        "reward.terms is a list, not one value: write reward.terms=[{use: pickscore}]",
    ),
    ("tracker.tags=no", "write tracker.tags=[no]"),
    ("model=rf-tiny", "command line: model is a group, not one setting; in it: bundle"),
    ("trainer.mixed_precision=fp8", "expected one of ['no', 'bf16', 'fp16']"),
    ("model.train=[unet]", "model.train[0]: Invalid value 'unet', expected one of ['denoiser_lora'"),
    ("model.lora.rank=[", "cannot read the value in 'model.lora.rank=['"),
    ("faster", "'faster' is no setting; write it as group.name=value"),
    ("trainer.steps=0", "trainer.steps is 0; it must be at least 1"),
    ("optimizer.lr=0", "optimizer.lr is 0.0; it must be above 0"),
    ("data.image_scale=1.5", "data.image_scale is 1.5; it must be at most 1"),
    ("optimizer.lr=nan", "optimizer.lr is nan; it must be a finite number"),
    ("run.out=${nowhere}", "Interpolation key 'nowhere' not found"),
]


def test_a_wrong_override_is_named():
    for override, message in WRONG_OVERRIDES:
        with pytest.raises(UserError, match=ONE_LINE) as error:
            load_config(CONFIGS / "tiny.yaml", [override])
        assert message in str(error.value), override


WRONG_FILES = [
    ("run:\n  name: a\ntraner:\n  steps: 3", "my.yaml:3: unknown key 'traner'; did you mean 'trainer'?"),
    ("run:\n  seed: abc", "my.yaml:2: run.seed: Value 'abc' of type 'str'"),
    ("run:\nmodel:\n  bundle: x", "my.yaml:1: run is a group"),
    ("run:\n  name: a\nrun:\n  name: b", "my.yaml:3: not valid YAML: found duplicate key run"),
    ("run: [", "my.yaml:1: not valid YAML"),
    ("model:\n  train: unet", "my.yaml:2: model.train is a list, not one value: write [unet]"),
    ("reward:\n  terms: {use: x}", "my.yaml:2: reward.terms is a list, not one value: write [{...}]"),
    ("rfnet: {width: 8}", "a config of RFNet's training; run: rfft rfnet train "),
    ("- run", "expected settings like"),
    ("run: !!python/object/apply:os.system [ls]", "my.yaml:1: "),
]


def test_a_wrong_file_is_named_with_its_line(tmp_path):
    for text, message in WRONG_FILES:
        with pytest.raises(UserError, match=ONE_LINE) as error:
            load_config(write(tmp_path, text))
        assert message in str(error.value), text


IMPOSSIBLE = [
    (["rollout.last=41"], "lower rollout.last"),
    (["rollout.last=2", "rollout.grad_steps=3"], "lower grad_steps"),
    (["model.train=[controlnet, controlnet_lora]"], "choose all of it or its LoRA"),
    (["model.train=[denoiser_lora, denoiser_lora]"], "twice"),
    (["model.train=[]"], "model.train=[denoiser_lora]"),
    (
        ["objective.precision=bf16", "model.dtype=bfloat16", "trainer.mixed_precision=no"],
        "needs autocast",
    ),
    (["model.lora.target_modules=[]"], "name the modules"),
    (["data.image_size=100"], "96 is"),
    (["data.canny_low=300"], "below data.canny_high"),
    (["optimizer.betas=[0.9, 1.5]"], "[0.9, 0.999]"),
    (["optimizer.betas=[[], []]"], "optimizer.betas is [[], []]; it must be a list of single values"),
    (["model.lora.target_modules=[to_q, {}]"], "it must be a list of single values"),
    (["run.name=../elsewhere"], "plain folder name"),
    (["tracker.project=../../../x"], "tracker.project '../../../x' must be a plain name"),
    (["evaluate.judge=rf-tiny-rfnet"], "evaluate.judge=null"),
    (
        ["evaluate.monitor=rf-tiny-rfnet"],
        "evaluate.monitor=rf-tiny-rfnet is a network that the run is trained",
    ),
    (["evaluate.monitor=m", "reward.terms=[{use: rfnet, options: {ensemble: [m]}}]"], "name another RFNet"),
    (["evaluate.monitor=rf-tiny-judge"], "evaluate.monitor is the judge, which stays out of every choice"),
    (["evaluate.stop_at_guardrail=true"], "set evaluate.every"),
    (
        ["evaluate.stop_at_guardrail=true", "evaluate.every=9", "evaluate.validation.seeds=1"],
        "validation.seeds=2",
    ),
    (
        ["evaluate.stop_at_guardrail=true", "evaluate.every=9", "evaluate.enabled=false"],
        "evaluate.enabled=true",
    ),
]


def test_an_impossible_combination_names_the_fix():
    for overrides, fix in IMPOSSIBLE:
        with pytest.raises(UserError, match=ONE_LINE) as error:
            load_config(CONFIGS / "tiny.yaml", overrides)
        assert fix in str(error.value), overrides


def test_one_step_short_of_impossible_is_fine():
    config = Config()
    config.run.name = "edge"
    config.rollout.last = config.rollout.grad_steps = config.rollout.steps
    check_config(config)


def test_a_run_folder_belongs_to_its_config(tmp_path):
    folder = tmp_path / "run"
    assert not open_run(folder, "trainer: {steps: 5, keep: 1}\nrun: {seed: 0}")
    assert open_run(folder, "trainer: {steps: 9, keep: 1}\nrun: {seed: 0}", may_change=["trainer.steps"])
    assert "steps: 9" in (folder / "config.yaml").read_text()
    with pytest.raises(UserError, match="belongs to another config: run.seed is 0 there, 1 here"):
        open_run(folder, "trainer: {steps: 9, keep: 1}\nrun: {seed: 1}", may_change=["trainer"])


@pytest.mark.parametrize("text", ["run: {seed: 0", "", "- run", "run: \xff"])
def test_a_runs_config_that_somebody_has_broken(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text, encoding="latin-1")
    for use in (partial(open_run, settings="run: {seed: 0}"), write_report):
        with pytest.raises(UserError, match="config.yaml: not the config that the run wrote"):
            use(tmp_path)


def test_no_report_of_an_rfnet(tmp_path):
    (tmp_path / "config.yaml").write_text("rfnet: {width: 8}")
    with pytest.raises(UserError, match="RFNet's runs have no report"):
        write_report(tmp_path)


def test_a_folder_beside_does_not_hide_a_shipped_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()  # as in runs/
    assert find_config("tiny") == CONFIGS / "tiny.yaml"
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="mine: no such config file"):
        find_config("mine")


def test_a_strange_folder_is_no_run_folder(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="no run folder"):
        open_run(tmp_path, "run: {seed: 0}")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_killed_before_there_was_a_config(tmp_path):
    (tmp_path / ".config.yaml.part").write_text("run: {se")
    assert not open_run(tmp_path, "run: {seed: 0}")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
