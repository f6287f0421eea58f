"""Modules of published transformers with two streams; how to read it: `published.DitTable`."""

FLUX1 = """
3072 4096: context_embedder
6144 3072: norm_out.linear
64 3072: proj_out
3072 768: time_text_embed.text_embedder.linear_1
3072 3072: time_text_embed.text_embedder.linear_2 time_text_embed.timestep_embedder.linear_2
3072 256: time_text_embed.timestep_embedder.linear_1
3072 in: x_embedder
single_transformer_blocks 0 38
3072 3072: attn.to_k attn.to_q attn.to_v
9216 3072: norm.linear
12288 3072: proj_mlp
3072 15360: proj_out
transformer_blocks 0 double
3072 3072: attn.add_k_proj attn.add_q_proj attn.add_v_proj attn.to_add_out attn.to_k attn.to_out.0
3072 3072: attn.to_q attn.to_v
12288 3072: ff.net.0.proj ff_context.net.0.proj
3072 12288: ff.net.2 ff_context.net.2
18432 3072: norm1.linear norm1_context.linear
"""
FLUX1_GUIDANCE = """
3072 256: time_text_embed.guidance_embedder.linear_1
3072 3072: time_text_embed.guidance_embedder.linear_2
"""
CHROMA = """
3072 4096: context_embedder
5120 64: distilled_guidance_layer.in_proj
3072 5120: distilled_guidance_layer.out_proj
64 3072: proj_out
3072 64: x_embedder
distilled_guidance_layer.layers 0 5
5120 5120: linear_1 linear_2
single_transformer_blocks 0 38
3072 3072: attn.to_k attn.to_q attn.to_v
12288 3072: proj_mlp
3072 15360: proj_out
transformer_blocks 0 19
3072 3072: attn.add_k_proj attn.add_q_proj attn.add_v_proj attn.to_add_out attn.to_k attn.to_out.0
3072 3072: attn.to_q attn.to_v
12288 3072: ff.net.0.proj ff_context.net.0.proj
3072 12288: ff.net.2 ff_context.net.2
"""
FLUX2 = """
h text: context_embedder
6h h: double_stream_modulation_img.linear double_stream_modulation_txt.linear
2h h: norm_out.linear
128 h: proj_out
3h h: single_stream_modulation.linear
h 256: time_guidance_embed.timestep_embedder.linear_1
h h: time_guidance_embed.timestep_embedder.linear_2
h 128: x_embedder
single_transformer_blocks 0 single
h 4h: attn.to_out
9h h: attn.to_qkv_mlp_proj
transformer_blocks 0 double
h h: attn.add_k_proj attn.add_q_proj attn.add_v_proj attn.to_add_out attn.to_k attn.to_out.0
h h: attn.to_q attn.to_v
6h h: ff.linear_in ff_context.linear_in
h 3h: ff.linear_out ff_context.linear_out
"""
FLUX2_GUIDANCE = """
6144 256: time_guidance_embed.guidance_embedder.linear_1
6144 6144: time_guidance_embed.guidance_embedder.linear_2
"""
FLUX3 = """
3072 20480: context_embedder
9216 3072: early_stream_modulations.image.linear early_stream_modulations.image_cond.linear
9216 3072: early_stream_modulations.txt.linear single_stream_modulations.image.linear
9216 3072: single_stream_modulations.image_cond.linear single_stream_modulations.txt.linear
6144 3072: norm_out.linear
128 3072: proj_out
3072 256: timestep_embedder.linear_1
3072 3072: timestep_embedder.linear_2
3072 128: x_embedders.image x_embedders.image_cond
mode_blocks.image 0 5
3072 3072: attn.to_k attn.to_out.0 attn.to_q attn.to_v
18432 3072: ff.linear_in
3072 9216: ff.linear_out
mode_blocks.image_cond 0 5
3072 3072: attn.to_k attn.to_out.0 attn.to_q attn.to_v
18432 3072: ff.linear_in
3072 9216: ff.linear_out
single_transformer_blocks 0 28
3072 3072: attn.to_k attn.to_out.0 attn.to_q attn.to_v
18432 3072: ff.linear_in
3072 9216: ff.linear_out
txt_mode_blocks 0 5
3072 3072: attn.to_k attn.to_out.0 attn.to_q attn.to_v
18432 3072: ff.linear_in
3072 9216: ff.linear_out
"""
SD3 = """
h 4096: context_embedder
2h h: norm_out.linear
h 16 2 2: pos_embed.proj
64 h: proj_out
h 2048: time_text_embed.text_embedder.linear_1
h h: time_text_embed.text_embedder.linear_2 time_text_embed.timestep_embedder.linear_2
h 256: time_text_embed.timestep_embedder.linear_1
transformer_blocks 0 depth
h h: attn.add_k_proj attn.add_q_proj attn.add_v_proj attn.to_k attn.to_out.0 attn.to_q attn.to_v
4h h: ff.net.0.proj
h 4h: ff.net.2
6h h: norm1.linear
transformer_blocks 0 last
h h: attn.to_add_out
4h h: ff_context.net.0.proj
h 4h: ff_context.net.2
6h h: norm1_context.linear
transformer_blocks last depth
2h h: norm1_context.linear
"""
# A second attention of the first blocks, with its own part of the modulation.
SD35_DUAL = """
transformer_blocks 0 dual
h h: attn2.to_k attn2.to_out.0 attn2.to_q attn2.to_v
9h h: norm1.linear
"""
AURAFLOW = """
3072 2048: context_embedder
6144 3072: norm_out.linear
3072 16: pos_embed.proj
16 3072: proj_out
3072 256: time_step_proj.linear_1
3072 3072: time_step_proj.linear_2
joint_transformer_blocks 0 4
3072 3072: attn.add_k_proj attn.add_q_proj attn.add_v_proj attn.to_add_out attn.to_k attn.to_out.0
3072 3072: attn.to_q attn.to_v
8192 3072: ff.linear_1 ff.linear_2 ff_context.linear_1 ff_context.linear_2
3072 8192: ff.out_projection ff_context.out_projection
18432 3072: norm1.linear norm1_context.linear
single_transformer_blocks 0 32
3072 3072: attn.to_k attn.to_out.0 attn.to_q attn.to_v
8192 3072: ff.linear_1 ff.linear_2
3072 8192: ff.out_projection
18432 3072: norm1.linear
"""
HUNYUAN_IMAGE = """
3584 3584: context_embedder.proj_in context_embedder.time_text_embed.text_embedder.linear_1
3584 3584: context_embedder.time_text_embed.text_embedder.linear_2
3584 3584: context_embedder.time_text_embed.timestep_embedder.linear_2
3584 3584: time_guidance_embed.timestep_embedder.linear_2
3584 256: context_embedder.time_text_embed.timestep_embedder.linear_1
3584 256: time_guidance_embed.timestep_embedder.linear_1
2048 1472: context_embedder_2.linear_1
2048 2048: context_embedder_2.linear_2
3584 2048: context_embedder_2.linear_3
7168 3584: norm_out.linear
64 3584: proj_out
3584 64 1 1: x_embedder.proj
context_embedder.token_refiner.refiner_blocks 0 2
3584 3584: attn.to_k attn.to_out.0 attn.to_q attn.to_v
14336 3584: ff.net.0.proj
3584 14336: ff.net.2
7168 3584: norm_out.linear
single_transformer_blocks 0 40
3584 3584: attn.to_k attn.to_q attn.to_v
10752 3584: norm.linear
14336 3584: proj_mlp
3584 17920: proj_out
transformer_blocks 0 20
3584 3584: attn.add_k_proj attn.add_q_proj attn.add_v_proj attn.to_add_out attn.to_k attn.to_out.0
3584 3584: attn.to_q attn.to_v
14336 3584: ff.net.0.proj ff_context.net.0.proj
3584 14336: ff.net.2 ff_context.net.2
21504 3584: norm1.linear norm1_context.linear
"""
HUNYUAN_VIDEO = """
3072 4096: context_embedder.proj_in context_embedder.time_text_embed.text_embedder.linear_1
3072 3072: context_embedder.time_text_embed.text_embedder.linear_2
3072 3072: context_embedder.time_text_embed.timestep_embedder.linear_2
3072 3072: time_text_embed.guidance_embedder.linear_2 time_text_embed.text_embedder.linear_2
3072 3072: time_text_embed.timestep_embedder.linear_2
3072 256: context_embedder.time_text_embed.timestep_embedder.linear_1
3072 256: time_text_embed.guidance_embedder.linear_1 time_text_embed.timestep_embedder.linear_1
6144 3072: norm_out.linear
64 3072: proj_out
3072 768: time_text_embed.text_embedder.linear_1
context_embedder.token_refiner.refiner_blocks 0 2
3072 3072: attn.to_k attn.to_out.0 attn.to_q attn.to_v
12288 3072: ff.net.0.proj
3072 12288: ff.net.2
6144 3072: norm_out.linear
single_transformer_blocks 0 40
3072 3072: attn.to_k attn.to_q attn.to_v
9216 3072: norm.linear
12288 3072: proj_mlp
3072 15360: proj_out
transformer_blocks 0 20
3072 3072: attn.add_k_proj attn.add_q_proj attn.add_v_proj attn.to_add_out attn.to_k attn.to_out.0
3072 3072: attn.to_q attn.to_v
12288 3072: ff.net.0.proj ff_context.net.0.proj
3072 12288: ff.net.2 ff_context.net.2
18432 3072: norm1.linear norm1_context.linear
"""
HUNYUAN_VIDEO_15 = """
3 2048: cond_type_embed
2048 3584: context_embedder.proj_in context_embedder.time_text_embed.text_embedder.linear_1
2048 2048: context_embedder.time_text_embed.text_embedder.linear_2
2048 2048: context_embedder.time_text_embed.timestep_embedder.linear_2 context_embedder_2.linear_2
2048 2048: context_embedder_2.linear_3 time_embed.timestep_embedder.linear_2
2048 256: context_embedder.time_text_embed.timestep_embedder.linear_1
2048 256: time_embed.timestep_embedder.linear_1
2048 1472: context_embedder_2.linear_1
1152 1152: image_embedder.linear_1
2048 1152: image_embedder.linear_2
4096 2048: norm_out.linear
32 2048: proj_out
context_embedder.token_refiner.refiner_blocks 0 2
2048 2048: attn.to_k attn.to_out.0 attn.to_q attn.to_v
8192 2048: ff.net.0.proj
2048 8192: ff.net.2
4096 2048: norm_out.linear
transformer_blocks 0 54
2048 2048: attn.add_k_proj attn.add_q_proj attn.add_v_proj attn.to_add_out attn.to_k attn.to_out.0
2048 2048: attn.to_q attn.to_v
8192 2048: ff.net.0.proj ff_context.net.0.proj
2048 8192: ff.net.2 ff_context.net.2
12288 2048: norm1.linear norm1_context.linear
"""
