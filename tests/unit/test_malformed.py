"""Whatever a file holds, reading it ends in success or in one line for its author, never in a traceback."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rfft.config.load import load_config
from rfft.data.products import read_products
from rfft.data.prompts import read_prompts
from rfft.errors import UserError
from rfft.feedback.folder import read_feedback
from rfft.feedback.label import label_generated
from rfft.feedback.rf1m_index import Index, build_index
from rfft.feedback.sources import Source

CONFIG = Path(__file__).parents[2] / "configs" / "tiny.yaml"
often = settings(
    max_examples=int(os.environ.get("FUZZ", "50")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

letters = st.text(max_size=12)
names = (
    st.sampled_from(["a.png", "../a.png", "/etc/passwd", "..", ".", "a\0b", "x" * 300, "a.png/"]) | letters
)
numbers = st.integers() | st.floats() | st.sampled_from([10**400, -0.0, 1e-320])
plain = (
    st.none() | st.booleans() | numbers | letters | names | st.sampled_from(["\ud800", "${run.name}", "&a"])
)
values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(letters, inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(
    ["id", "image", "caption", "prompt", "negative_prompt", "image_scale", "matting", "flag"]
)
objects = st.dictionaries(keys, st.one_of(plain, st.just("a.png"), st.just(0.5)), max_size=8)
digits = st.just("[" + "9" * 5000 + "]")  # more than Python turns into a number
nested = st.just("[" * 100_000)
snippets = st.text(alphabet=":-[]{}&*!#|>%@`'\"\n\t ,?abct019.$~\0\ufeff\u0085é", max_size=60)


def survives(read: Callable[[], object]) -> None:
    try:
        read()
    except UserError as error:
        assert str(error)


def write(file: Path, content: str | bytes) -> Path:
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    file.write_bytes(data)
    return file


def mutated(text: str) -> st.SearchStrategy[str]:
    """The text with a piece of it replaced."""
    place = st.integers(0, len(text))
    return st.builds(lambda i, n, new: text[:i] + new + text[i + n :], place, st.integers(0, 40), snippets)


tags = st.sampled_from(
    [
        "!!bool x",
        "!!timestamp x",
        "!!int ''",
        "!!float x",
        "!!binary x",
        "!!set {a}",
        "0x" + "f" * 6000,
        "1e999",
    ]
)
settings_of_a_group = st.dictionaries(
    st.sampled_from(["name", "seed", "out", "steps", "extra", "train", "lora", "betas", "bundle", "lr"])
    | letters,
    values,
    max_size=3,
)
groups = st.sampled_from(
    ["run", "model", "data", "reward", "rollout", "optimizer", "trainer", "ema", "tracker"]
)
configs = (
    st.dictionaries(groups | letters, settings_of_a_group | values, max_size=3).map(json.dumps)
    | snippets
    | tags.map("run: {{seed: {0}}}\ndata: {{white_level: {0}, products: {0}}}".format)
    | mutated(CONFIG.read_text())
    | st.just("[" * 2000)
    | digits
    | st.just("a: &a [*a]")
    | st.just("run: {name: !!timestamp 2001-02-03}\ndata: !!binary x\n? [1, 2]\n: 3")
)


@often
@given(content=configs | st.binary(max_size=60))
def test_config_files(tmp_path: Path, content: str | bytes) -> None:
    survives(lambda: load_config(write(tmp_path / "my.yaml", content)))


@often
@given(
    key=st.sampled_from(["run.name", "trainer.steps", "reward.terms", "optimizer.betas", "model.lora", "run"])
    | letters,
    value=values.map(json.dumps) | snippets | tags,
)
def test_overrides(tmp_path: Path, key: str, value: str) -> None:
    survives(lambda: load_config(write(tmp_path / "my.yaml", "run: {}"), [f"{key}={value}"]))


def test_a_config_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    with pytest.raises(UserError) as error:
        load_config(CONFIG, ["tracker.project=${oc.env:WANDB_API_KEY}"])
    assert "0123456789" not in str(error.value)


def test_a_bomb_of_aliases(tmp_path: Path) -> None:
    levels = "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 9))
    with pytest.raises(UserError, match="anchors and aliases"):
        load_config(write(tmp_path / "my.yaml", "a0: &a0 [x]\n" + levels))


lines_of_json = st.lists(objects.map(json.dumps) | values.map(json.dumps) | snippets | digits, max_size=3)


@often
@given(content=lines_of_json.map("\n".join) | nested | st.binary(max_size=60))
def test_manifests(tmp_path: Path, content: str | bytes) -> None:
    (tmp_path / "a.png").touch()
    file = write(tmp_path / "products.jsonl", content)
    try:
        products = read_products(file)
    except UserError as error:
        assert str(error)
        return
    for product in products:  # what gets through is fit for file names, and lies in the folder
        assert product.image.resolve().is_relative_to(tmp_path) and product.image.is_file()
        (tmp_path / f"{product.id}-0.txt").write_text(f"{product.caption}{product.prompt}", encoding="utf-8")


@often
@given(
    content=st.lists(objects, max_size=3).map(json.dumps)
    | values.map(json.dumps)
    | mutated('[{"prompt": "a {} vase", "negative_prompt": "dark", "image_scale": 0.7, "flag": 1}]')
    | nested
    | digits
    | st.binary(max_size=60)
)
def test_prompt_files(tmp_path: Path, content: str | bytes) -> None:
    survives(lambda: [p.text.encode() for p in read_prompts(write(tmp_path / "prompts.json", content))])


columns = st.tuples(names, st.sampled_from("1234567") | letters, letters).map("\t".join)


@often
@given(
    labels=st.lists(columns | snippets, max_size=4).map("\n".join) | st.binary(max_size=60),
    prompts=lines_of_json.map("\n".join) | nested,
)
def test_label_files(tmp_path: Path, labels: str | bytes, prompts: str) -> None:
    for kind in ("images", "products"):
        (tmp_path / kind).mkdir(exist_ok=True)
    write(tmp_path / "prompts.jsonl", prompts)
    write(tmp_path / "label.txt", labels)
    survives(lambda: [record.load() for record in read_feedback(tmp_path)])


@often
@given(
    labels=st.lists(columns | st.just("a.png\t1\tvase") | snippets, max_size=4).map("\n".join)
    | st.binary(max_size=60),
    captions=st.lists(st.tuples(names, letters).map("\t".join) | snippets, max_size=3).map("\n".join)
    | st.binary(max_size=60),
    prompts=lines_of_json.map("\n".join) | nested,
)
def test_packages_of_rf1m(tmp_path: Path, labels: str | bytes, captions: str | bytes, prompts: str) -> None:
    source, index = tmp_path / "packages", tmp_path / "index.sqlite"
    for kind in ("images", "products"):
        (source / kind).mkdir(parents=True, exist_ok=True)
        (source / kind / "a.png").touch()
    write(source / "label.txt", labels)
    write(source / "captions.txt", captions)
    write(source / "prompts.jsonl", prompts)

    def read() -> None:
        build_index(Source(source), index, lambda listed: None)
        for row in Index(index).rows(0, 100):  # what gets through leads to files of the source
            assert (source / row.image.member).is_file() and row.caption

    survives(read)


columns_of_generated = ("id", "image", "product", "caption", "prompt")
generated = st.fixed_dictionaries(
    {key: st.just("a.png") | names | plain for key in columns_of_generated}
).map(json.dumps)
whole = dict.fromkeys(columns_of_generated, "a.png")


@example(labels="a.png,1", manifest=json.dumps(whole | {"product": 3}), suffix=".csv")
@example(labels="a.png,1", manifest=json.dumps(whole | {"prompt": "\ud800"}), suffix=".csv")
@often
@given(
    labels=st.lists(st.tuples(names, letters).map(",".join) | st.just("a.png,1") | snippets, max_size=4).map(
        "\n".join
    )
    | st.binary(max_size=60),
    manifest=lines_of_json.map("\n".join) | generated | nested,
    suffix=st.sampled_from([".csv", ".txt"]),
)
def test_labels_of_generated_pictures(
    tmp_path: Path, labels: str | bytes, manifest: str, suffix: str
) -> None:
    shutil.rmtree(tmp_path / "new", ignore_errors=True)
    (tmp_path / "a.png").touch()
    write(tmp_path / "manifest.jsonl", manifest)
    file = write(tmp_path / f"labels{suffix}", b"name,label\n" + write(tmp_path / "raw", labels).read_bytes())
    survives(lambda: label_generated(tmp_path, file, tmp_path / "new"))
