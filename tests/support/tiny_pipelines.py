"""Tiny text-to-image pipelines of torch diffusers: random weights, a tokenizer of bytes."""

import json
from pathlib import Path
from typing import Any

import torch
import unets
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from tokenizers.pre_tokenizers import ByteLevel
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer

PROMPTS = ["a drawing in ink", "paper, folded"]
LENGTH = 16
"""Tokens of a prompt."""
SIZE = 16
"""Height and width of the pictures; their latents have half of it."""

_BETAS: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
_XL = {"cross_attention_dim": 16, "projection_class_embeddings_input_dim": 32}
# As the published pipelines of these bases are put together.
UNETS = {
    "sd15": unets.SMALL["sd15"] | {"cross_attention_dim": 8},
    "sd21": unets.SMALL["sd21"] | {"cross_attention_dim": 16},
    "sdxl": unets.SMALL["sdxl"] | _XL,
    "ssd-1b": unets.SMALL["ssd-1b"] | _XL,
    "vega": unets.SMALL["vega"] | _XL,
}
_TWO = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_head_dim": (1, 2),
}
_OLDER = _TWO | {
    "down_block_types": (unets.ATTENDED, unets.PLAIN),
    "up_block_types": (unets.UP_PLAIN, unets.UP_ATTENDED),
}
_NEWER = _TWO | {
    "down_block_types": (unets.PLAIN, unets.ATTENDED),
    "up_block_types": (unets.UP_ATTENDED, unets.UP_PLAIN),
}
# Of two resolutions, with a layer each: where pipelines are only used, and what is shown of them
# does not depend on how deep they are, most of the time would be the compiler's.
SHORT = {
    "sd15": UNETS["sd15"] | _OLDER | {"attention_head_dim": 2},
    "sd21": UNETS["sd21"] | _OLDER,
    "sdxl": UNETS["sdxl"] | _NEWER | {"transformer_layers_per_block": (1, 2)},
    "ssd-1b": unets.SMALLEST | _XL,
    "vega": unets.SMALLEST | _XL | {"reverse_transformer_layers_per_block": [[1, 1], 1]},
}

TEXT, VAE = "model.safetensors", "diffusion_pytorch_model.safetensors"
WEIGHTS = {"text_encoder": TEXT, "text_encoder_2": TEXT, "vae": VAE, "unet": VAE}


def edit(file: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None takes one out."""
    fields = json.loads(file.read_bytes()) | changes
    file.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


def save_tokenizer(folder: Path) -> CLIPTokenizer:
    """A tokenizer whose tokens are single bytes, as files and opened."""
    folder.mkdir(parents=True)
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=LENGTH)


def text_encoder(seed: int, *, projected: bool, act: str, width: int = 8) -> Any:
    """A CLIP text encoder; norms and biases random, too."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=8,
        vocab_size=514,
        max_position_embeddings=LENGTH,
        hidden_act=act,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    made = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()
    return _shaken(made, 0.5)


def vae(seed: int = 0) -> AutoencoderKL:
    """A VAE with two resolutions and attention in the middle."""
    torch.manual_seed(seed)
    config: dict[str, Any] = dict(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=SIZE,
    )
    return _shaken(AutoencoderKL(**config).eval(), 0.2)


def make_pipeline(folder: Path, base: str, *, seed: int = 0, short: bool = False) -> Any:
    """A torch pipeline whose UNet is as `base`'s (`SHORT`?), saved to `folder` as safetensors."""
    tokenizer = save_tokenizer(folder / "tokens")
    unet: Any = unets.torch_net((SHORT if short else UNETS)[base], seed=seed)
    unet.register_to_config(sample_size=SIZE // 2)
    pndm: Any = PNDMScheduler(**_BETAS, skip_prk_steps=True, steps_offset=1)
    euler: Any = EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading", steps_offset=1)
    if base in ("sd15", "sd21"):
        newer = base == "sd21"
        ddim: Any = DDIMScheduler(
            **_BETAS,
            prediction_type="v_prediction",
            set_alpha_to_one=False,
            clip_sample=False,
            steps_offset=1,
        )
        act, width = ("gelu", 16) if newer else ("quick_gelu", 8)
        pipe: Any = StableDiffusionPipeline(
            vae(),
            text_encoder(1, projected=False, act=act, width=width),
            tokenizer,
            unet,
            ddim if newer else pndm,
            safety_checker=None,  # pyright: ignore[reportArgumentType]
            feature_extractor=None,  # pyright: ignore[reportArgumentType]
            requires_safety_checker=False,
        )
    else:
        pipe = StableDiffusionXLPipeline(
            vae(),
            text_encoder(1, projected=False, act="quick_gelu"),
            text_encoder(2, projected=True, act="gelu"),
            tokenizer,
            tokenizer,
            unet,
            euler,
        )
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return pipe


def _shaken(net: Any, level: float) -> Any:
    """Norms and biases, which are made as ones and zeros, made random."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter += level * torch.randn(parameter.shape)
    return net
