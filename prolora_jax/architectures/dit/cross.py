"""Families with one stream, which looks at the text or has it inside: PixArt, Wan, Qwen, LTX."""

from prolora_jax.architectures.dit.names import DitFamily

_OUTSIDE = ("", "")
_BLOCKS = ("blocks", "transformer_blocks")


def _numbered(there: str, here: str, numbers: tuple[int, int] = (0, 2)) -> dict[str, str]:
    """Two layers with something between them that has no weight."""
    return {f"{there}.{number}": f"{here}.linear_{i}" for i, number in enumerate(numbers, 1)}


PIXART = DitFamily(
    "pixart",
    (
        ("blocks.*.cross_attn.kv_linear",),
        ("adaln_single.linear", "pos_embed.proj", "transformer_blocks.*.attn2.to_q"),
    ),
    {
        _OUTSIDE: {
            **_numbered("t_embedder.mlp", "adaln_single.emb.timestep_embedder"),
            **_numbered("ar_embedder.mlp", "adaln_single.emb.aspect_ratio_embedder"),
            **_numbered("csize_embedder.mlp", "adaln_single.emb.resolution_embedder"),
            "t_block.1": "adaln_single.linear",
            "y_embedder.y_proj.fc1": "caption_projection.linear_1",
            "y_embedder.y_proj.fc2": "caption_projection.linear_2",
            "x_embedder.proj": "pos_embed.proj",
            "final_layer.linear": "proj_out",
        },
        _BLOCKS: {
            "attn.qkv": "attn1.to_q attn1.to_k attn1.to_v",
            "attn.proj": "attn1.to_out.0",
            "cross_attn.q_linear": "attn2.to_q",
            "cross_attn.kv_linear": "attn2.to_k attn2.to_v",
            "cross_attn.proj": "attn2.to_out.0",
            "mlp.fc1": "ff.net.0.proj",
            "mlp.fc2": "ff.net.2",
        },
    },
)
SANA = DitFamily(
    "sana", (("patch_embed.proj", "time_embed.linear", "transformer_blocks.*.ff.conv_inverted"),)
)
COGVIDEOX = DitFamily(
    "cogvideox",
    (("patch_embed.text_proj", "time_embedding.linear_1", "transformer_blocks.*.attn1.to_q"),),
)

_WAN_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
WAN = DitFamily(
    "wan",
    (("blocks.*.self_attn.q", "blocks.*.cross_attn.q"), ("condition_embedder.time_proj",)),
    {
        _OUTSIDE: {
            **_numbered("text_embedding", "condition_embedder.text_embedder"),
            **_numbered("time_embedding", "condition_embedder.time_embedder"),
            "time_projection.1": "condition_embedder.time_proj",
            "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
            "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
            "head.head": "proj_out",
        },
        ("blocks", "blocks"): {
            **{f"self_attn.{there}": f"attn1.{here}" for there, here in _WAN_ATTENTION.items()},
            **{f"cross_attn.{there}": f"attn2.{here}" for there, here in _WAN_ATTENTION.items()},
            **{f"cross_attn.{one}_img": f"attn2.add_{one}_proj" for one in "kv"},
            "ffn.0": "ffn.net.0.proj",
            "ffn.2": "ffn.net.2",
        },
    },
)

_COSMOS_ATTENTION = {f"{one}_proj": f"to_{one}" for one in "qkv"} | {"output_proj": "to_out.0"}
COSMOS = DitFamily(
    "cosmos",
    (
        ("blocks.*.adaln_modulation_self_attn.1",),
        ("patch_embed.proj", "transformer_blocks.*.norm1.linear_1"),
    ),
    {
        _OUTSIDE: {
            "t_embedder.1.linear_1": "time_embed.t_embedder.linear_1",
            "t_embedder.1.linear_2": "time_embed.t_embedder.linear_2",
            "x_embedder.proj.1": "patch_embed.proj",
            "final_layer.linear": "proj_out",
            **_numbered("final_layer.adaln_modulation", "norm_out", (1, 2)),
        },
        _BLOCKS: {
            **{f"self_attn.{there}": f"attn1.{here}" for there, here in _COSMOS_ATTENTION.items()},
            **{f"cross_attn.{there}": f"attn2.{here}" for there, here in _COSMOS_ATTENTION.items()},
            "mlp.layer1": "ff.net.0.proj",
            "mlp.layer2": "ff.net.2",
            **_numbered("adaln_modulation_self_attn", "norm1", (1, 2)),
            **_numbered("adaln_modulation_cross_attn", "norm2", (1, 2)),
            **_numbered("adaln_modulation_mlp", "norm3", (1, 2)),
        },
    },
)

_KREA_BLOCK = {
    **{f"attn.w{one}": f"attn.to_{one}" for one in "qkv"},
    "attn.wo": "attn.to_out.0",
    "attn.gate": "attn.to_gate",
    **{f"mlp.{one}": f"ff.{one}" for one in ("gate", "up", "down")},
}
KREA2 = DitFamily(
    "krea2",
    (("txtfusion.projector",), ("text_fusion.projector",)),
    {
        _OUTSIDE: {
            "first": "img_in",
            **_numbered("tmlp", "time_embed"),
            **_numbered("txtmlp", "txt_in", (1, 3)),
            "txtfusion.projector": "text_fusion.projector",
            "tproj.1": "time_mod_proj",
            "last.linear": "final_layer.linear",
        },
        _BLOCKS: _KREA_BLOCK,
        ("txtfusion.layerwise_blocks", "text_fusion.layerwise_blocks"): _KREA_BLOCK,
        ("txtfusion.refiner_blocks", "text_fusion.refiner_blocks"): _KREA_BLOCK,
    },
)

_LTX_TIME = ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
LTX = DitFamily(
    "ltx",
    (
        ("patchify_proj", "adaln_single.linear"),
        ("proj_in", "time_embed.linear", "transformer_blocks.*.attn2.to_q"),
    ),
    {
        _OUTSIDE: {
            "patchify_proj": "proj_in",
            **{f"adaln_single.{layer}": f"time_embed.{layer}" for layer in _LTX_TIME},
        }
    },
)
LTX2 = DitFamily("ltx2", (("proj_in", "audio_proj_in", "time_embed.linear"),))

_STACKS = ("layers", "noise_refiner", "context_refiner")
_LUMINA_BLOCK = {
    "attention.qkv": "attn.to_q attn.to_k attn.to_v",
    "attention.out": "attn.to_out.0",
    **{f"feed_forward.w{i}": f"feed_forward.linear_{i}" for i in (1, 2, 3)},
    "adaLN_modulation.1": "norm1.linear",
}
LUMINA2 = DitFamily(
    "lumina2",
    (
        ("layers.*.attention.qkv", "layers.*.adaLN_modulation.1"),
        ("time_caption_embed.timestep_embedder.linear_1",),
    ),
    {
        _OUTSIDE: {
            **_numbered("t_embedder.mlp", "time_caption_embed.timestep_embedder"),
            "cap_embedder.1": "time_caption_embed.caption_embedder.1",
            "final_layer.linear": "norm_out.linear_2",
            "final_layer.adaLN_modulation.1": "norm_out.linear_1",
        },
        **{(stack, stack): _LUMINA_BLOCK for stack in _STACKS},
    },
)
_Z_BLOCK = {
    "attention.qkv": "attention.to_q attention.to_k attention.to_v",
    "attention.out": "attention.to_out.0",
}
Z_IMAGE = DitFamily(
    "z-image",
    (
        ("layers.*.attention.qkv", "layers.*.adaLN_modulation.0"),
        ("layers.*.attention.to_q", "layers.*.adaLN_modulation.0"),
    ),
    {
        # Official files are named as here; these are the names of ComfyUI's own copies.
        _OUTSIDE: {
            "x_embedder": "all_x_embedder.2-1",
            "final_layer.linear": "all_final_layer.2-1.linear",
            "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
        },
        **{(stack, stack): _Z_BLOCK for stack in _STACKS},
    },
)
QWEN = DitFamily("qwen-image", (("transformer_blocks.*.img_mod.1",),))
QWEN21 = DitFamily("qwen-image-2.1", (("transformer_blocks.*.img_mlp.gate_layer",),))
HIDREAM = DitFamily("hidream", (("double_stream_blocks.*.block.attn1.to_q",),))
