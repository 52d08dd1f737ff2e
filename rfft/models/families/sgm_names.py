"""Names of a U-Net's modules in the layout of Stability's generative-models (sgm)."""

from __future__ import annotations

import re

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(.*)")
MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)(.*)")


def sgm_name(module: str, layers_per_block: int) -> str:
    """Return the sgm name of a module that diffusers' UNet2DConditionModel calls `module`."""
    if found := MIDDLE.fullmatch(module):
        kind, number, rest = found.groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}{_inside(kind, rest)}"
    if found := BLOCK.fullmatch(module):
        side, block, kind, number, rest = found.groups()
        return _in_block(side, int(block), kind, int(number), layers_per_block) + _inside(kind, rest)
    return OUTSIDE[module]


def _in_block(side: str, block: int, kind: str, number: int, layers: int) -> str:
    """Return where a layer of block number `block` lies in sgm's flat list of input or output blocks."""
    if side == "down_blocks":
        first = block * (layers + 1) + 1
        return {
            "resnets": f"input_blocks.{first + number}.0",
            "attentions": f"input_blocks.{first + number}.1",
            "downsamplers": f"input_blocks.{first + layers}.0",
        }[kind]
    first = block * (layers + 1)
    return {
        "resnets": f"output_blocks.{first + number}.0",
        "attentions": f"output_blocks.{first + number}.1",
        # Behind the attention, which all blocks have that SDXL enlarges.
        "upsamplers": f"output_blocks.{first + layers}.2",
    }[kind]


def _inside(kind: str, rest: str) -> str:
    """Return the part of the name that lies inside a layer."""
    if kind == "resnets":
        return "." + RESNET[rest[1:]]
    return ".op" if kind == "downsamplers" else rest
