"""Pipelines of the shapes of the newer bases with random weights: real but for the values, and tiny."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    ControlNetModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetInpaintPipeline,
    FluxControlNetModel,
    FluxFillPipeline,
    FluxTransformer2DModel,
    KolorsPipeline,
    QwenImageControlNetModel,
    QwenImageControlNetPipeline,
    QwenImageTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.kolors import ChatGLMModel, ChatGLMTokenizer
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig
from sentencepiece import SentencePieceTrainer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from tests.shapes import FULL, SMALL, awake, text_encoder, tokenizer, vae

GLM_WIDTH = 16
BYTES = ["<|endoftext|>", *sorted(ByteLevel.alphabet())]
SENTENCES = ["a bookcase in a park", "soft light", "公园里的书架", "木桌上的花瓶，柔和的灯光"] * 20
OF_ADAPTERS = ("image_encoder", "feature_extractor")
CHANNELS = 16  # of latents, which are four times smaller than pictures


def pipeline(name: str) -> Any:
    """A pipeline shaped like one of PIPELINES; the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = PIPELINES[name]()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipe


def controlnet(name: str) -> Any:
    """The ControlNet of a base whose pipeline takes none, else None."""
    if name != "kolors":
        return None
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = ControlNetModel.from_unet(_kolors_unet(), conditioning_embedding_out_channels=(4, 8, 16))
        awake(network)
    return network.eval()


def save(name: str, folder: Path) -> None:
    """Write a base with its ControlNet, as RFFT loads it."""
    pipeline(name).save_pretrained(folder)
    if (network := controlnet(name)) is None:
        return
    network.save_pretrained(folder / "controlnet")
    index = json.loads((folder / "model_index.json").read_text())
    index["controlnet"] = ["diffusers", type(network).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))


def _kolors() -> Any:
    tokenizer = _chatglm_tokenizer()
    text_encoder = ChatGLMModel(
        ChatGLMConfig(
            num_layers=2,
            padded_vocab_size=tokenizer.vocab_size + 16,
            hidden_size=GLM_WIDTH,
            ffn_hidden_size=32,
            kv_channels=8,
            num_attention_heads=2,
            seq_length=300,
            multi_query_attention=True,
            add_qkv_bias=True,
            original_rope=True,
        )
    )
    for parameter in text_encoder.parameters():  # it leaves them as it finds them in memory
        parameter.data.normal_(std=0.2)
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.014,
        beta_schedule="scaled_linear",
        num_train_timesteps=1100,
        steps_offset=1,
        timestep_spacing="leading",
    )
    return KolorsPipeline(
        vae=vae(SMALL["sdxl"]),
        unet=_kolors_unet(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler,
    )


def _kolors_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=(2, 4),
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=GLM_WIDTH + 6 * 8,
        encoder_hid_dim=GLM_WIDTH,
        encoder_hid_dim_type="text_proj",
    )


@lru_cache(maxsize=1)
def _chatglm_words() -> TemporaryDirectory[str]:
    """A folder with a sentencepiece model of a few words, Chinese and English; saving needs it again."""
    folder = TemporaryDirectory()
    with (Path(folder.name) / "tokenizer.model").open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES),
            model_writer=file,
            vocab_size=80,
            hard_vocab_limit=False,
            character_coverage=1.0,
            minloglevel=2,
        )
    return folder


def _chatglm_tokenizer() -> ChatGLMTokenizer:
    return ChatGLMTokenizer(str(Path(_chatglm_words().name) / "tokenizer.model"))


def wide(name: str) -> Any:
    """A base as wide as the published one, with fewer layers and small text encoders, so that memory lasts.

    sd3 is SD 3.5 medium's, without T5.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return WIDE[name]()


def _wide_vae() -> AutoencoderKL:
    network = vae(FULL["sd15"], channels=16)
    network.register_to_config(scaling_factor=1.5305, shift_factor=0.0609)
    return network


def _wide_sd3() -> Any:
    shared = {
        "sample_size": 128,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
    }
    control = SD3ControlNetModel(**shared, num_layers=2, pos_embed_max_size=96)
    awake(control)
    words = tokenizer()
    return StableDiffusion3ControlNetPipeline(
        transformer=SD3Transformer2DModel(
            **shared,
            num_layers=6,
            dual_attention_layers=(0, 1, 2),
            qk_norm="rms_norm",
            pos_embed_max_size=96,
        ),
        controlnet=control,
        vae=_wide_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=text_encoder(768, words, CLIPTextModelWithProjection),
        text_encoder_2=text_encoder(1280, words, CLIPTextModelWithProjection),
        text_encoder_3=None,
        tokenizer=words,
        tokenizer_2=words,
        tokenizer_3=None,
    )


def _wide_flux() -> Any:
    shared = {"joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True}
    control = FluxControlNetModel(**shared, num_layers=1, num_single_layers=0)
    awake(control)
    words = tokenizer()
    return FluxControlNetInpaintPipeline(
        transformer=FluxTransformer2DModel(**shared, num_layers=1, num_single_layers=2),
        controlnet=control,
        vae=_wide_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        text_encoder=text_encoder(768, words, CLIPTextModel),
        text_encoder_2=_t5(4096),
        tokenizer=words,
        tokenizer_2=_t5_tokenizer(),
    )


def _wide_qwen_image() -> Any:
    parts = _qwen_image().components
    control = QwenImageControlNetModel(num_layers=1, joint_attention_dim=32)
    awake(control)
    wide = {
        "transformer": QwenImageTransformer2DModel(num_layers=2, joint_attention_dim=32),
        "controlnet": control,
    }
    return QwenImageControlNetPipeline(**(parts | wide | {"vae": AutoencoderKLQwenImage()}))


def _sd3(**controlnet: Any) -> Any:
    """SD 3.5 medium's dual attention and norms, and InstantX's canny ControlNet unless said otherwise."""
    shared = {
        "sample_size": 16,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,  # T5's, more than both of CLIP's
        "caption_projection_dim": 16,
        "pooled_projection_dim": 32,
        "pos_embed_max_size": 24,
        "qk_norm": "rms_norm",
    }
    transformer = SD3Transformer2DModel(**shared, num_layers=3, dual_attention_layers=(0,))
    control = SD3ControlNetModel(**(shared | {"num_layers": 2} | controlnet))
    awake(control)
    words = tokenizer()
    return StableDiffusion3ControlNetPipeline(
        transformer=transformer,
        controlnet=control,
        vae=_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=text_encoder(16, words, CLIPTextModelWithProjection),
        text_encoder_2=text_encoder(16, words, CLIPTextModelWithProjection),
        text_encoder_3=_t5(48),
        tokenizer=words,
        tokenizer_2=words,
        tokenizer_3=_t5_tokenizer(),
    )


def _flux(**controlnet: Any) -> Any:
    """FLUX.1-dev's distilled guidance, and InstantX's canny ControlNet unless said otherwise."""
    shared = {
        "in_channels": 4 * CHANNELS,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 16,
        "guidance_embeds": True,
        "axes_dims_rope": (2, 2, 4),
    }
    control = FluxControlNetModel(**(shared | {"num_single_layers": 0} | controlnet))
    awake(control)
    words = tokenizer()
    return FluxControlNetInpaintPipeline(
        transformer=FluxTransformer2DModel(**shared),
        controlnet=control,
        vae=_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        text_encoder=text_encoder(16, words, CLIPTextModel),
        text_encoder_2=_t5(32),
        tokenizer=words,
        tokenizer_2=_t5_tokenizer(),
    )


def _flux_fill() -> Any:
    """Its transformer takes the latents twice, and the 4 x 4 pixels of the mask behind each."""
    parts = _flux().components
    del parts["controlnet"]
    takes = {"in_channels": 4 * (2 * CHANNELS + 16), "out_channels": 4 * CHANNELS}
    parts["transformer"] = FluxTransformer2DModel.from_config(parts["transformer"].config, **takes)
    return FluxFillPipeline(**{name: part for name, part in parts.items() if name not in OF_ADAPTERS})


def _qwen_image(**controlnet: Any) -> Any:
    """With InstantX's ControlNet for edges unless said otherwise."""
    shared = {
        "in_channels": 4 * CHANNELS,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "axes_dims_rope": (2, 2, 4),
    }
    control = QwenImageControlNetModel(**shared, **({"num_layers": 2} | controlnet))
    awake(control)
    words = Qwen2Tokenizer(vocab={token: i for i, token in enumerate(BYTES)}, merges=[])
    text = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    return QwenImageControlNetPipeline(
        transformer=QwenImageTransformer2DModel(**shared, num_layers=3, out_channels=CHANNELS),
        controlnet=control,
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=CHANNELS,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=vision)
        ),
        tokenizer=words,
    )


def _vae() -> AutoencoderKL:
    widths = (8, 8, 16)
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _t5(width: int) -> T5EncoderModel:
    sizes = {"d_model": width, "d_kv": 8, "num_heads": 2, "d_ff": 32, "num_layers": 1}
    return T5EncoderModel(T5Config(vocab_size=len(_t5_tokenizer()), **sizes))


def _t5_tokenizer() -> T5TokenizerFast:
    """Letters and a word."""
    special = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    letters = [(letter, -3.0) for letter in "▁abcdefghijklmnopqrstuvwxyz0123456789,."]
    return T5TokenizerFast(vocab=[*special, *letters, ("▁park", -4.0)], extra_ids=0)


WIDE = {"sd3": _wide_sd3, "flux": _wide_flux, "qwen_image": _wide_qwen_image}
PIPELINES: dict[str, Callable[[], Any]] = {
    "kolors": _kolors,
    "flux": _flux,
    # Another one's sees one mode of ten, and more blocks than the base takes residuals of.
    "flux_union": lambda: _flux(num_mode=10, num_layers=1, num_single_layers=3),
    # XLabs' sees the edges themselves.
    "flux_xlabs": lambda: _flux(conditioning_embedding_channels=4 * CHANNELS),
    "flux_fill": _flux_fill,
    "qwen_image": _qwen_image,
    "qwen_image_inpaint": lambda: _qwen_image(extra_condition_channels=4),
    "sd3": _sd3,
    # Of Stability's own ControlNets: single blocks without text, on the base's patch embedding.
    "sd35_large": lambda: _sd3(
        joint_attention_dim=None, use_pos_embed=False, force_zeros_for_pooled_projection=False
    ),
    "sd3_inpaint": lambda: _sd3(extra_conditioning_channels=1),
}
