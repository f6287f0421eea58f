"""Families with a stream for the picture and one for the text: Flux, SD 3, AuraFlow, Hunyuan."""

from prolora_jax.architectures.dit.names import DitFamily

_QKV = "attn.to_q attn.to_k attn.to_v"
_ADDED = "attn.add_q_proj attn.add_k_proj attn.add_v_proj"
_OUTSIDE = ("", "")
_DOUBLE = ("double_blocks", "transformer_blocks")
_SINGLE = ("single_blocks", "single_transformer_blocks")
_GUIDANCE = ("distilled_guidance_layer.layers", "distilled_guidance_layer.layers")
_LAST = frozenset({"norm_out.linear"})
_FUSED_SINGLE = {"linear1": f"{_QKV} proj_mlp", "linear2": "proj_out"}
_ATTENTION = {
    **{"img_attn.qkv": _QKV, "txt_attn.qkv": _ADDED},
    **{"img_attn.proj": "attn.to_out.0", "txt_attn.proj": "attn.to_add_out"},
}
_FLUX_DOUBLE = _ATTENTION | {
    **{"img_mlp.0": "ff.net.0.proj", "img_mlp.2": "ff.net.2"},
    **{"txt_mlp.0": "ff_context.net.0.proj", "txt_mlp.2": "ff_context.net.2"},
    **{"img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear"},
}
_FLUX_ENDS = {
    **{"img_in": "x_embedder", "txt_in": "context_embedder"},
    **{"final_layer.linear": "proj_out", "final_layer.adaLN_modulation.1": "norm_out.linear"},
}


def _embedders(inside: str, *kinds: str) -> dict[str, str]:
    """Names of Flux' embedders: time, guidance, pooled text."""
    there = {"timestep": "time_in", "guidance": "guidance_in", "text": "vector_in"}
    return {
        f"{there[kind]}.{layer}": f"{inside}.{kind}_embedder.linear_{i}"
        for kind in kinds
        for i, layer in enumerate(("in_layer", "out_layer"), 1)
    }


FLUX1 = DitFamily(
    "flux1",
    (
        ("double_blocks.*.img_attn.qkv",),
        ("transformer_blocks.*.attn.add_q_proj", "single_transformer_blocks.*.proj_mlp")
        + ("x_embedder",),
    ),
    {
        _OUTSIDE: _FLUX_ENDS | _embedders("time_text_embed", "timestep", "guidance", "text"),
        _DOUBLE: _FLUX_DOUBLE,
        _SINGLE: _FUSED_SINGLE | {"modulation.lin": "norm.linear"},
    },
    _LAST,
)
CHROMA = DitFamily(
    "chroma",
    (("distilled_guidance_layer.in_proj",),),
    {
        _OUTSIDE: _FLUX_ENDS,
        _DOUBLE: _FLUX_DOUBLE,
        _SINGLE: _FUSED_SINGLE,
        _GUIDANCE: {"in_layer": "linear_1", "out_layer": "linear_2"},
    },
    _LAST,
    kin=FLUX1.name,  # made from FLUX.1 schnell
)
FLUX2 = DitFamily(
    "flux2",
    (
        ("double_stream_modulation_img.lin",),
        ("double_stream_modulation_img.linear", "single_transformer_blocks.*.attn.to_out"),
    ),
    {
        _OUTSIDE: _FLUX_ENDS
        | _embedders("time_guidance_embed", "timestep", "guidance")
        | {
            f"{name}.lin": f"{name}.linear"
            for name in (
                "double_stream_modulation_img",
                "double_stream_modulation_txt",
                "single_stream_modulation",
            )
        },
        _DOUBLE: _ATTENTION
        | {
            **{"img_mlp.0": "ff.linear_in", "img_mlp.2": "ff.linear_out"},
            **{"txt_mlp.0": "ff_context.linear_in", "txt_mlp.2": "ff_context.linear_out"},
        },
        # One module in both: what diffusers splits elsewhere it keeps whole here.
        _SINGLE: {"linear1": "attn.to_qkv_mlp_proj", "linear2": "attn.to_out"},
    },
    _LAST,
)
FLUX3 = DitFamily("flux3", (("txt_mode_blocks.*.attn.to_q", "mode_blocks.image.*.attn.to_q"),))

_BOTH = (("x_block", "", "to_out.0"), ("context_block", "_context", "to_add_out"))
SD3 = DitFamily(
    "sd3",
    (
        ("joint_blocks.*.x_block.attn.qkv",),
        ("transformer_blocks.*.attn.add_q_proj", "pos_embed.proj", "context_embedder"),
    ),
    {
        _OUTSIDE: {
            "x_embedder.proj": "pos_embed.proj",
            **{
                f"t_embedder.mlp.{2 * i}": f"time_text_embed.timestep_embedder.linear_{i + 1}"
                for i in range(2)
            },
            **{
                f"y_embedder.mlp.{2 * i}": f"time_text_embed.text_embedder.linear_{i + 1}"
                for i in range(2)
            },
            "final_layer.linear": "proj_out",
            "final_layer.adaLN_modulation.1": "norm_out.linear",
        },
        ("joint_blocks", "transformer_blocks"): {
            "x_block.attn.qkv": _QKV,
            "context_block.attn.qkv": _ADDED,
            "x_block.attn2.qkv": _QKV.replace("attn.", "attn2."),
            "x_block.attn2.proj": "attn2.to_out.0",
            **{f"{there}.attn.proj": f"attn.{out}" for there, _, out in _BOTH},
            **{f"{there}.adaLN_modulation.1": f"norm1{end}.linear" for there, end, _ in _BOTH},
            **{f"{there}.mlp.fc1": f"ff{end}.net.0.proj" for there, end, _ in _BOTH},
            **{f"{there}.mlp.fc2": f"ff{end}.net.2" for there, end, _ in _BOTH},
        },
    },
    # The last block's text has two halves of modulation, scale first; the others' has six parts.
    _LAST | {"transformer_blocks.*.norm1_context.linear"},
)

_AURA_FF = {"c_fc1": "linear_1", "c_fc2": "linear_2", "c_proj": "out_projection"}
_AURA_OUT = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
_AURA_ADDED = {"q": "add_q_proj", "k": "add_k_proj", "v": "add_v_proj", "o": "to_add_out"}
AURAFLOW = DitFamily(
    "auraflow",
    (("double_layers.*.attn.w2q",), ("joint_transformer_blocks.*.attn.add_q_proj",)),
    {
        _OUTSIDE: {
            "t_embedder.mlp.0": "time_step_proj.linear_1",
            "t_embedder.mlp.2": "time_step_proj.linear_2",
            "cond_seq_linear": "context_embedder",
            "init_x_linear": "pos_embed.proj",
            "final_linear": "proj_out",
            "modF.1": "norm_out.linear",
        },
        # The picture is the second of the two here, and all there is in a single layer the first.
        ("double_layers", "joint_transformer_blocks"): {
            **{f"attn.w2{one}": f"attn.{name}" for one, name in _AURA_OUT.items()},
            **{f"attn.w1{one}": f"attn.{name}" for one, name in _AURA_ADDED.items()},
            **{f"mlpX.{one}": f"ff.{name}" for one, name in _AURA_FF.items()},
            **{f"mlpC.{one}": f"ff_context.{name}" for one, name in _AURA_FF.items()},
            "modX.1": "norm1.linear",
            "modC.1": "norm1_context.linear",
        },
        ("single_layers", "single_transformer_blocks"): {
            **{f"attn.w1{one}": f"attn.{name}" for one, name in _AURA_OUT.items()},
            **{f"mlp.{one}": f"ff.{name}" for one, name in _AURA_FF.items()},
            "modCX.1": "norm1.linear",
        },
    },
    _LAST,
)

_REFINER = "context_embedder.token_refiner.refiner_blocks"
_HUNYUAN_TEXT = {
    "txt_in.input_embedder": "context_embedder.proj_in",
    "txt_in.t_embedder.mlp.0": "context_embedder.time_text_embed.timestep_embedder.linear_1",
    "txt_in.t_embedder.mlp.2": "context_embedder.time_text_embed.timestep_embedder.linear_2",
    "txt_in.c_embedder.linear_1": "context_embedder.time_text_embed.text_embedder.linear_1",
    "txt_in.c_embedder.linear_2": "context_embedder.time_text_embed.text_embedder.linear_2",
    "img_in.proj": "x_embedder.proj",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_HUNYUAN_REFINER = {
    "self_attn_qkv": _QKV,
    "self_attn_proj": "attn.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm_out.linear",
}
_HUNYUAN_DOUBLE = {
    **{"img_attn_proj": "attn.to_out.0", "txt_attn_proj": "attn.to_add_out"},
    **{"img_mlp.fc1": "ff.net.0.proj", "img_mlp.fc2": "ff.net.2"},
    **{"txt_mlp.fc1": "ff_context.net.0.proj", "txt_mlp.fc2": "ff_context.net.2"},
    **{"img_mod.linear": "norm1.linear", "txt_mod.linear": "norm1_context.linear"},
}
_HUNYUAN_BLOCKS = ("txt_in.individual_token_refiner.blocks", _REFINER)
HUNYUAN_IMAGE = DitFamily(
    "hunyuan-image", (("context_embedder_2.linear_1", "single_transformer_blocks.*.proj_mlp"),)
)
HUNYUAN_VIDEO = DitFamily(
    "hunyuan-video",
    (
        ("double_blocks.*.img_attn_qkv",),
        (f"{_REFINER}.*.attn.to_q", "single_transformer_blocks.*.proj_mlp"),
    ),
    {
        _OUTSIDE: _HUNYUAN_TEXT
        | _embedders("time_text_embed", "text")
        | {
            f"{there}.mlp.{2 * i}": f"time_text_embed.{here}_embedder.linear_{i + 1}"
            for there, here in (("time_in", "timestep"), ("guidance_in", "guidance"))
            for i in range(2)
        },
        _DOUBLE: _HUNYUAN_DOUBLE | {"img_attn_qkv": _QKV, "txt_attn_qkv": _ADDED},
        _SINGLE: _FUSED_SINGLE | {"modulation.linear": "norm.linear"},
        _HUNYUAN_BLOCKS: _HUNYUAN_REFINER,
    },
    _LAST,
)
HUNYUAN_VIDEO_15 = DitFamily(
    "hunyuan-video-1.5",
    (("double_blocks.*.img_attn_q",), (f"{_REFINER}.*.attn.to_q", "image_embedder.linear_1")),
    {
        _OUTSIDE: _HUNYUAN_TEXT
        | {
            **{
                f"time_in.mlp.{2 * i}": f"time_embed.timestep_embedder.linear_{i + 1}"
                for i in range(2)
            },
            **{f"byt5_in.fc{i}": f"context_embedder_2.linear_{i}" for i in (1, 2, 3)},
            "vision_in.proj.1": "image_embedder.linear_1",
            "vision_in.proj.3": "image_embedder.linear_2",
            "cond_type_embedding": "cond_type_embed",
        },
        _DOUBLE: _HUNYUAN_DOUBLE
        | {f"img_attn_{one}": f"attn.to_{one}" for one in "qkv"}
        | {f"txt_attn_{one}": f"attn.add_{one}_proj" for one in "qkv"},
        _HUNYUAN_BLOCKS: _HUNYUAN_REFINER,
    },
    _LAST,
)
