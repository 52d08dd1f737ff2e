"""Depth and saliency of real pictures: as the originals, conventions, gradients, what loads and what not."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
)

from rfft.adworld.draw import draw_dataset
from rfft.build import build_rfnet
from rfft.config.load import load_config
from rfft.errors import UserError
from rfft.feedback.folder import read_feedback
from rfft.rewards import maps
from rfft.rewards.availability import RFNetWithMaps
from rfft.rewards.depth import DepthEstimator
from rfft.rewards.maps import MapNet, find_depth, load_depth, load_saliency, make_maps
from rfft.rewards.rfnet import RFNet, RFNetConfig
from rfft.rewards.u2net import U2Net
from rfft.rfnet.data import build_maps, fill_maps
from rfft.rfnet.schema import MapsConfig as MapSettings

# onnxruntime on the original u2netp.onnx: the map of `waves` at rows and columns 20, 76, 132 ...
ORIGINAL = [
    [0.015, 0.065, 0.231, 0.376, 0.159, 0.051],
    [0.004, 0.052, 0.215, 0.469, 0.418, 0.310],
    [0.004, 0.046, 0.114, 0.675, 0.804, 0.611],
    [0.008, 0.116, 0.822, 0.829, 0.132, 0.604],
    [0.004, 0.791, 1.000, 0.687, 0.147, 0.768],
    [0.007, 0.998, 0.997, 0.237, 0.024, 0.485],
]
BLOCK = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
PROCESSOR = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}


def waves(size: int = 320) -> Tensor:
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    red, blue = 0.5 + 0.5 * torch.sin(12 * x + 3 * y), 0.5 + 0.5 * torch.cos(20 * y * x)
    return torch.stack([red, x * y, blue])[None]


@pytest.fixture(scope="module")
def u2netp() -> nn.Module:
    return load_saliency("u2netp")


@pytest.fixture
def small_u2netp(u2netp: U2Net) -> U2Net:
    """The same weights on 64 px, for speed."""
    model = U2Net(u2netp.config).eval().requires_grad_(False)
    model.load_state_dict(u2netp.state_dict())
    model.config = replace(u2netp.config, image_size=64)
    return model


@pytest.fixture(scope="module")
def depth_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """DPT and Depth Anything with random weights, 56 px, as save_pretrained leaves them."""
    folders = {name: tmp_path_factory.mktemp("depth") / name for name in ("dpt", "depth_anything", "metric")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, folder in folders.items():
            model = _dpt() if name == "dpt" else _depth_anything("metric" if name == "metric" else "relative")
            for parameter in model.head.parameters():
                parameter.data = 20 * parameter.data.abs()  # random heads are nearly flat
            model.save_pretrained(folder)
            size = {"height": 56, "width": 56}
            (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"size": size}))
    return folders


def _dpt() -> DPTForDepthEstimation:
    sizes = {"image_size": 56, "patch_size": 8, "fusion_hidden_size": 8, "neck_hidden_sizes": [8, 8, 16, 16]}
    return DPTForDepthEstimation(
        DPTConfig(**BLOCK, **sizes, intermediate_size=32, backbone_out_indices=[0, 1, 2, 3])
    )


def _depth_anything(kind: str) -> DepthAnythingForDepthEstimation:
    stages = [f"stage{i}" for i in range(1, 5)]
    backbone = Dinov2Config(
        **BLOCK, image_size=56, patch_size=14, out_features=stages, reshape_hidden_states=False
    )
    sizes = {"reassemble_hidden_size": 16, "fusion_hidden_size": 8, "head_hidden_size": 4, "max_depth": 20}
    return DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=backbone,
            **sizes,
            neck_hidden_sizes=[4, 8, 8, 16],
            depth_estimation_type=kind,
            patch_size=14,
        )
    )


class TestU2Net:
    def test_it_gives_what_the_original_gives(self, u2netp: U2Net) -> None:
        with torch.no_grad():
            found = u2netp(waves())
        torch.testing.assert_close(found[0, 0, 20::56, 20::56], torch.tensor(ORIGINAL), rtol=0, atol=0.01)
        assert found.mean().item() == pytest.approx(0.3752, abs=1e-3)
        assert sum(parameter.numel() for parameter in u2netp.parameters()) == 1_125_485

    def test_a_batch_of_any_shape(self, small_u2netp: U2Net) -> None:
        pictures = torch.cat([waves(96), 1 - waves(96)])[..., :70]
        found = small_u2netp(pictures)
        assert found.shape == (2, 1, 96, 70)
        assert found.min() >= 0 and found.max() <= 1
        torch.testing.assert_close(small_u2netp(pictures[1:]), found[1:], rtol=0, atol=1e-4)

    def test_the_gradient_is_the_slope(self, small_u2netp: U2Net) -> None:
        picture = waves(64).requires_grad_()
        (slope,) = torch.autograd.grad(small_u2netp(picture).mean(), picture)
        step = 1e-3 * slope / slope.norm()
        with torch.no_grad():
            rise = small_u2netp(picture + step).mean() - small_u2netp(picture - step).mean()
        assert rise.item() / 2e-3 == pytest.approx(slope.norm().item(), rel=0.05)


class TestDepth:
    @pytest.mark.parametrize("name", ["dpt", "depth_anything", "metric"])
    def test_maps_and_gradients_of_any_shape(self, depth_folders: dict[str, Path], name: str) -> None:
        network = load_depth(str(depth_folders[name]))
        pictures = waves(80)[..., :60].repeat(2, 1, 1, 1).requires_grad_()
        found = network(pictures)
        assert found.shape == (2, 1, 80, 60)
        assert found.min() >= 0 and found.amax((1, 2, 3)).min() > 0.8 and found.max() <= 1
        found[1].mean().backward()
        assert pictures.grad is not None
        assert not pictures.grad[0].any() and pictures.grad[1].any()
        assert not any(parameter.requires_grad for parameter in network.parameters())

    @pytest.mark.parametrize(
        ("metric", "expected"),
        [(False, [[0.0, 1.0], [0.25, 0.75]]), (True, [[1.0, 0.0], [0.375, 1 / 16]])],
    )
    def test_one_is_nearest(self, metric: bool, expected: list[list[float]]) -> None:
        """Inverse depth as it is; 1, 5, 2 and 4 metres are 1, 0.2, 0.5 and 0.25 per metre."""
        values = torch.tensor([[1.0, 5.0], [2.0, 4.0]])
        seen: list[Tensor] = []

        class Camera(nn.Linear):
            def forward(self, pixel_values: Tensor) -> SimpleNamespace:
                seen.append(pixel_values)
                return SimpleNamespace(predicted_depth=values[None])

        network = DepthEstimator(Camera(1, 1), (2, 2), [0.5, 0.25, 0.0], [0.5, 0.25, 2.0], metric)
        found = network(torch.full((1, 3, 2, 2), 0.75))
        assert found[0, 0].tolist() == [pytest.approx(row) for row in expected]
        assert seen[0][0, :, 0, 0].tolist() == [0.5, 2.0, 0.375]

    def test_folders_that_do_not_load(self, depth_folders: dict[str, Path], tmp_path: Path) -> None:
        dpt = depth_folders["dpt"]
        config = json.loads((dpt / "config.json").read_text())
        for name in ("lacking", "unprepared", "other"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").write_text(json.dumps(config))
        weights = load_file(dpt / "model.safetensors")
        save_file(weights, tmp_path / "unprepared/model.safetensors", metadata={"format": "pt"})
        del weights["head.head.0.weight"]
        save_file(weights, tmp_path / "lacking/model.safetensors", metadata={"format": "pt"})
        (tmp_path / "lacking/preprocessor_config.json").write_text(
            (dpt / "preprocessor_config.json").read_text()
        )
        (tmp_path / "other/config.json").write_text('{"model_type": "bert"}')
        for name, message in {
            "lacking": "1 weights are missing, first head.head.0.weight",
            "unprepared": "neither a folder nor a hub id that loads",
            "other": "bert is none of dpt, depth_anything",
        }.items():
            with pytest.raises(UserError, match=message):
                load_depth(str(tmp_path / name))


def test_an_unknown_hub_id_is_a_clear_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="depth network some/where: neither a folder nor a hub id") as error:
        load_depth("some/where")
    assert "\n" not in str(error.value)


def test_the_config_names_them(depth_folders: dict[str, Path]) -> None:
    config = load_config("tiny", ["reward.saliency=u2netp", f"reward.depth={depth_folders['dpt']}"])
    reward = build_rfnet(config, "cpu")
    assert reward is not None
    assert isinstance(reward.saliency, U2Net) and isinstance(reward.depth, DepthEstimator)
    assert not reward.training


def test_the_network_is_chosen_by_its_folder() -> None:
    assert isinstance(load_depth("rf-tiny-depth"), MapNet)
    assert isinstance(load_saliency("rf-tiny-saliency"), MapNet)
    assert find_depth("LiheYoung/depth-anything-small-hf") == "LiheYoung/depth-anything-small-hf"
    with pytest.raises(UserError, match="nowhere: no such network"):
        find_depth("nowhere")
    with pytest.raises(UserError, match="holds U2Net, not MapNet"):
        load_depth("u2netp")
    with pytest.raises(UserError, match="holds RFNet, not MapNet"):
        load_saliency("rf-tiny-rfnet")


def no_words(captions: list[str], **_: object) -> SimpleNamespace:
    """A tokenizer that knows none."""
    tokens = torch.zeros(len(captions), 3, dtype=torch.long)
    return SimpleNamespace(input_ids=tokens, attention_mask=tokens)


@pytest.mark.parametrize("auxiliary_grad", [True, False])
def test_the_reward_sees_through_them(
    small_u2netp: U2Net, depth_folders: dict[str, Path], auxiliary_grad: bool
) -> None:
    """An RFNet that looks at nothing but the maps: all of its gradient passes through them."""
    torch.manual_seed(0)
    config = RFNetConfig.tiny(64, image_size=32, width=16, n2=1, drop=["o", "g", "c"])
    config.image_encoder |= {"embedding_size": 8, "hidden_sizes": [8, 8, 8], "depths": [1, 1, 1]}
    depth = load_depth(str(depth_folders["depth_anything"]))
    reward = RFNetWithMaps(RFNet(config), depth, small_u2netp, no_words, auxiliary_grad)
    batch = SimpleNamespace(product=torch.rand(2, 4, 64, 64), captions=["a", "b"])
    picture = torch.cat([waves(64), 1 - waves(64)]).requires_grad_()
    logits = reward(picture, batch)
    assert logits.shape == (2, 5)
    assert not any(parameter.requires_grad for parameter in reward.parameters())
    assert logits.requires_grad == auxiliary_grad
    if auxiliary_grad:
        logits[:, 0].sum().backward()
        assert picture.grad is not None and picture.grad.abs().amax((1, 2, 3)).min() > 0


def test_many_pictures_go_through_a_few_at_a_time(
    depth_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the size that the network gives them: 56 px, whatever the picture's."""
    monkeypatch.setattr(maps, "FORWARD_PIXELS", 2 * 56 * 56)
    network = load_depth(str(depth_folders["dpt"]))
    sizes: list[int] = []
    network.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    pictures = torch.cat([waves(24) * shade for shade in (1, 0.8, 0.6, 0.4, 0.2)])
    found = make_maps(network, pictures)
    assert sizes == [2, 2, 1] and found.shape == (5, 1, 24, 24)
    torch.testing.assert_close(found[3:4], network(pictures[3:4]), rtol=0, atol=1e-5)


def test_a_data_set_is_prepared_by_any_of_them(depth_folders: dict[str, Path], tmp_path: Path) -> None:
    """Made once by U2-Net and a transformers model, kept under the mark of their weights."""
    draw_dataset(tmp_path / "scenes", 2, seed=0, workers=1)
    records = read_feedback(tmp_path / "scenes")
    settings = MapSettings(depth=str(depth_folders["dpt"]), saliency="u2netp", known=False)
    maps = build_maps(settings, drop=[])
    fill_maps(maps, records, settings, torch.device("cpu"))
    networks = {"depth": load_depth(settings.depth), "saliency": load_saliency(settings.saliency)}
    for kind, network in networks.items():
        assert maps[kind].missing(records) == []
        for record in records:
            sample = record.load()
            image = torch.from_numpy(sample.image).permute(2, 0, 1)[None].float() / 255
            expected = network(image)[0, 0].mul(255).round().detach()
            made = torch.from_numpy(maps[kind].load(record, sample)).float()
            assert (made - expected).abs().max() <= 1
    other = MapSettings(depth=str(depth_folders["depth_anything"]), saliency="some-missing")
    assert build_maps(other, drop=["s"])["depth"].mark != maps["depth"].mark
    hub = MapSettings(depth="some/where")
    assert build_maps(hub, drop=["s"])["depth"].mark != maps["depth"].mark
