"""Packings that are not read, by a name that only they have."""

REFUSED = {
    ("weight_packed",): "compressed-tensors' pack-quantized, or nvfp4",
    ("weight_global_scale",): "compressed-tensors' nvfp4",
    ("weight_scale_2",): "nvfp4",
    ("weight_zero_point",): "compressed-tensors' asymmetric integers",
    ("weight_scalar",): "ComfyUI's hybrid_mxfp8",
    ("weight_s_rel",): "ComfyUI's w4a8",
    ("weight._shift",): "optimum-quanto's qint2 or qint4",
    ("W_q", "scale"): "HQQ",
    ("codebooks", "codes"): "AQLM",
    ("Qidxs", "SU"): "QuIP#",
    ("q_weight", "q_scale"): "EXL2",
    ("trellis", "suh"): "EXL3",
    ("weight_scales", "weight"): "EETQ",
}
"""Who packs so, by the ends of the tensors' names, all of which are there."""
