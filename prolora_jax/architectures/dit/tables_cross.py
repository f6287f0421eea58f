"""Modules of published transformers with one stream; how to read it: `published.DitTable`."""

PIXART = """
1152 256: adaln_single.emb.timestep_embedder.linear_1
1152 1152: adaln_single.emb.timestep_embedder.linear_2 caption_projection.linear_2
6912 1152: adaln_single.linear
1152 4096: caption_projection.linear_1
1152 4 2 2: pos_embed.proj
32 1152: proj_out
transformer_blocks 0 28
1152 1152: attn1.to_k attn1.to_out.0 attn1.to_q attn1.to_v attn2.to_k attn2.to_out.0 attn2.to_q
1152 1152: attn2.to_v
4608 1152: ff.net.0.proj
1152 4608: ff.net.2
"""
PIXART_SIZES = """
384 256: adaln_single.emb.aspect_ratio_embedder.linear_1
384 256: adaln_single.emb.resolution_embedder.linear_1
384 384: adaln_single.emb.aspect_ratio_embedder.linear_2
384 384: adaln_single.emb.resolution_embedder.linear_2
"""
SANA = """
h 2304: caption_projection.linear_1
h h: caption_projection.linear_2 time_embed.emb.timestep_embedder.linear_2
h 32 1 1: patch_embed.proj
32 h: proj_out
h 256: time_embed.emb.timestep_embedder.linear_1
6h h: time_embed.linear
transformer_blocks 0 depth
h h: attn1.to_k attn1.to_out.0 attn1.to_q attn1.to_v attn2.to_k attn2.to_out.0 attn2.to_q
h h: attn2.to_v
ff 1 3 3: ff.conv_depth
ff h 1 1: ff.conv_inverted
h half 1 1: ff.conv_point
"""
COGVIDEOX = """
2h 512: norm_out.linear
h 16 2 2: patch_embed.proj
h 4096: patch_embed.text_proj
64 h: proj_out
512 h: time_embedding.linear_1
512 512: time_embedding.linear_2
transformer_blocks 0 depth
h h: attn1.to_k attn1.to_out.0 attn1.to_q attn1.to_v
4h h: ff.net.0.proj
h 4h: ff.net.2
6h 512: norm1.linear norm2.linear
"""
WAN = """
h 4096: condition_embedder.text_embedder.linear_1
h h: condition_embedder.text_embedder.linear_2 condition_embedder.time_embedder.linear_2
h 256: condition_embedder.time_embedder.linear_1
6h h: condition_embedder.time_proj
out h: proj_out
blocks 0 depth
h h: attn1.to_k attn1.to_out.0 attn1.to_q attn1.to_v attn2.to_k attn2.to_out.0 attn2.to_q
h h: attn2.to_v
ff h: ffn.net.0.proj
h ff: ffn.net.2
"""
WAN_IMAGE = """
1280 1280: condition_embedder.image_embedder.ff.net.0.proj
5120 1280: condition_embedder.image_embedder.ff.net.2
blocks 0 40
5120 5120: attn2.add_k_proj attn2.add_v_proj
"""
COSMOS = """
256 h: norm_out.linear_1
2h 256: norm_out.linear_2
h 68: patch_embed.proj
64 h: proj_out
h h: time_embed.t_embedder.linear_1
3h h: time_embed.t_embedder.linear_2
transformer_blocks 0 depth
h h: attn1.to_k attn1.to_out.0 attn1.to_q attn1.to_v attn2.to_out.0 attn2.to_q
h 1024: attn2.to_k attn2.to_v
4h h: ff.net.0.proj
h 4h: ff.net.2
256 h: norm1.linear_1 norm2.linear_1 norm3.linear_1
3h 256: norm1.linear_2 norm2.linear_2 norm3.linear_2
"""
KREA2 = """
64 6144: final_layer.linear
6144 64: img_in
1 12: text_fusion.projector
6144 256: time_embed.linear_1
6144 6144: time_embed.linear_2 txt_in.linear_2
36864 6144: time_mod_proj
6144 2560: txt_in.linear_1
text_fusion.layerwise_blocks 0 2
2560 2560: attn.to_gate attn.to_k attn.to_out.0 attn.to_q attn.to_v
2560 6912: ff.down
6912 2560: ff.gate ff.up
text_fusion.refiner_blocks 0 2
2560 2560: attn.to_gate attn.to_k attn.to_out.0 attn.to_q attn.to_v
2560 6912: ff.down
6912 2560: ff.gate ff.up
transformer_blocks 0 28
6144 6144: attn.to_gate attn.to_out.0 attn.to_q
1536 6144: attn.to_k attn.to_v
6144 16384: ff.down
16384 6144: ff.gate ff.up
"""
LTX = """
h 4096: caption_projection.linear_1
h h: caption_projection.linear_2 time_embed.emb.timestep_embedder.linear_2
h 128: proj_in
128 h: proj_out
h 256: time_embed.emb.timestep_embedder.linear_1
6h h: time_embed.linear
transformer_blocks 0 depth
h h: attn1.to_k attn1.to_out.0 attn1.to_q attn1.to_v attn2.to_k attn2.to_out.0 attn2.to_q
h h: attn2.to_v
4h h: ff.net.0.proj
h 4h: ff.net.2
"""
LTX2 = """
2048 128: audio_proj_in
128 2048: audio_proj_out
2048 256: audio_time_embed.emb.timestep_embedder.linear_1
2048 256: av_cross_attn_audio_scale_shift.emb.timestep_embedder.linear_1
2048 256: av_cross_attn_audio_v2a_gate.emb.timestep_embedder.linear_1
2048 2048: audio_time_embed.emb.timestep_embedder.linear_2
2048 2048: av_cross_attn_audio_scale_shift.emb.timestep_embedder.linear_2
2048 2048: av_cross_attn_audio_v2a_gate.emb.timestep_embedder.linear_2
2048 2048: av_cross_attn_audio_v2a_gate.linear
m 2048: audio_time_embed.linear
8192 2048: av_cross_attn_audio_scale_shift.linear
4096 256: av_cross_attn_video_a2v_gate.emb.timestep_embedder.linear_1
4096 256: av_cross_attn_video_scale_shift.emb.timestep_embedder.linear_1
4096 256: time_embed.emb.timestep_embedder.linear_1
4096 4096: av_cross_attn_video_a2v_gate.emb.timestep_embedder.linear_2
4096 4096: av_cross_attn_video_a2v_gate.linear
4096 4096: av_cross_attn_video_scale_shift.emb.timestep_embedder.linear_2
4096 4096: time_embed.emb.timestep_embedder.linear_2
16384 4096: av_cross_attn_video_scale_shift.linear
4096 128: proj_in
128 4096: proj_out
mv 4096: time_embed.linear
transformer_blocks 0 48
4096 4096: attn1.to_k attn1.to_out.0 attn1.to_q attn1.to_v attn2.to_k attn2.to_out.0 attn2.to_q
4096 4096: attn2.to_v
2048 2048: audio_attn1.to_k audio_attn1.to_out.0 audio_attn1.to_q audio_attn1.to_v
2048 2048: audio_attn2.to_k audio_attn2.to_out.0 audio_attn2.to_q audio_attn2.to_v
2048 2048: audio_to_video_attn.to_k audio_to_video_attn.to_v video_to_audio_attn.to_out.0
2048 2048: video_to_audio_attn.to_q
8192 2048: audio_ff.net.0.proj
2048 8192: audio_ff.net.2
4096 2048: audio_to_video_attn.to_out.0
2048 4096: audio_to_video_attn.to_q video_to_audio_attn.to_k video_to_audio_attn.to_v
16384 4096: ff.net.0.proj
4096 16384: ff.net.2
"""
LTX2_CAPTION = """
2048 3840: audio_caption_projection.linear_1
2048 2048: audio_caption_projection.linear_2
4096 3840: caption_projection.linear_1
4096 4096: caption_projection.linear_2
"""
LTX23_GATES = """
2048 256: audio_prompt_adaln.emb.timestep_embedder.linear_1
2048 2048: audio_prompt_adaln.emb.timestep_embedder.linear_2
4096 2048: audio_prompt_adaln.linear
4096 256: prompt_adaln.emb.timestep_embedder.linear_1
4096 4096: prompt_adaln.emb.timestep_embedder.linear_2
8192 4096: prompt_adaln.linear
transformer_blocks 0 48
32 4096: attn1.to_gate_logits attn2.to_gate_logits audio_to_video_attn.to_gate_logits
32 2048: audio_attn1.to_gate_logits audio_attn2.to_gate_logits video_to_audio_attn.to_gate_logits
"""
LUMINA2 = """
2304 1024: norm_out.linear_1
64 2304: norm_out.linear_2
2304 2304: time_caption_embed.caption_embedder.1
1024 256: time_caption_embed.timestep_embedder.linear_1
1024 1024: time_caption_embed.timestep_embedder.linear_2
2304 64: x_embedder
context_refiner 0 2
768 2304: attn.to_k attn.to_v
2304 2304: attn.to_out.0 attn.to_q
9216 2304: feed_forward.linear_1 feed_forward.linear_3
2304 9216: feed_forward.linear_2
layers 0 26
768 2304: attn.to_k attn.to_v
2304 2304: attn.to_out.0 attn.to_q
9216 2304: feed_forward.linear_1 feed_forward.linear_3
2304 9216: feed_forward.linear_2
9216 1024: norm1.linear
noise_refiner 0 2
768 2304: attn.to_k attn.to_v
2304 2304: attn.to_out.0 attn.to_q
9216 2304: feed_forward.linear_1 feed_forward.linear_3
2304 9216: feed_forward.linear_2
9216 1024: norm1.linear
"""
Z_IMAGE = """
3840 256: all_final_layer.2-1.adaLN_modulation.1
64 3840: all_final_layer.2-1.linear
3840 64: all_x_embedder.2-1
3840 2560: cap_embedder.1
1024 256: t_embedder.mlp.0
256 1024: t_embedder.mlp.2
context_refiner 0 2
3840 3840: attention.to_k attention.to_out.0 attention.to_q attention.to_v
10240 3840: feed_forward.w1 feed_forward.w3
3840 10240: feed_forward.w2
layers 0 30
15360 256: adaLN_modulation.0
3840 3840: attention.to_k attention.to_out.0 attention.to_q attention.to_v
10240 3840: feed_forward.w1 feed_forward.w3
3840 10240: feed_forward.w2
noise_refiner 0 2
15360 256: adaLN_modulation.0
3840 3840: attention.to_k attention.to_out.0 attention.to_q attention.to_v
10240 3840: feed_forward.w1 feed_forward.w3
3840 10240: feed_forward.w2
"""
QWEN = """
3072 64: img_in
6144 3072: norm_out.linear
64 3072: proj_out
3072 256: time_text_embed.timestep_embedder.linear_1
3072 3072: time_text_embed.timestep_embedder.linear_2
3072 3584: txt_in
transformer_blocks 0 60
3072 3072: attn.add_k_proj attn.add_q_proj attn.add_v_proj attn.to_add_out attn.to_k attn.to_out.0
3072 3072: attn.to_q attn.to_v
12288 3072: img_mlp.net.0.proj txt_mlp.net.0.proj
3072 12288: img_mlp.net.2 txt_mlp.net.2
18432 3072: img_mod.1 txt_mod.1
"""
QWEN_LAYERED = """
2 3072: time_text_embed.addition_t_embedding
"""
QWEN21 = """
4096 64: img_in
16384 4096: modulation.1
4096 4096: norm_out.linear time_text_embed.timestep_embedder.linear_2 txt_in.in_layer
4096 4096: txt_in.out_layer
64 4096: proj_out
4096 256: time_text_embed.timestep_embedder.linear_1
transformer_blocks 0 32
4096 4096: attn.to_k attn.to_out.0 attn.to_q attn.to_v
12288 4096: img_mlp.gate_layer img_mlp.proj
4096 12288: img_mlp.out
"""
HIDREAM = """
5120 2560: final_layer.adaLN_modulation.1
64 2560: final_layer.linear
2560 2048: p_embedder.pooled_embedder.linear_1
2560 2560: p_embedder.pooled_embedder.linear_2 t_embedder.timestep_embedder.linear_2
2560 256: t_embedder.timestep_embedder.linear_1
2560 64: x_embedder.proj
caption_projection 0 49
2560 4096: linear
double_stream_blocks 0 16
30720 2560: block.adaLN_modulation.1
2560 2560: block.attn1.to_k block.attn1.to_k_t block.attn1.to_out block.attn1.to_out_t
2560 2560: block.attn1.to_q block.attn1.to_q_t block.attn1.to_v block.attn1.to_v_t
6912 2560: block.ff_i.experts.0.w1 block.ff_i.experts.0.w3 block.ff_i.experts.1.w1
6912 2560: block.ff_i.experts.1.w3 block.ff_i.experts.2.w1 block.ff_i.experts.2.w3
6912 2560: block.ff_i.experts.3.w1 block.ff_i.experts.3.w3 block.ff_t.w1 block.ff_t.w3
2560 6912: block.ff_i.experts.0.w2 block.ff_i.experts.1.w2 block.ff_i.experts.2.w2
2560 6912: block.ff_i.experts.3.w2 block.ff_t.w2
4 2560: block.ff_i.gate
3584 2560: block.ff_i.shared_experts.w1 block.ff_i.shared_experts.w3
2560 3584: block.ff_i.shared_experts.w2
single_stream_blocks 0 32
15360 2560: block.adaLN_modulation.1
2560 2560: block.attn1.to_k block.attn1.to_out block.attn1.to_q block.attn1.to_v
6912 2560: block.ff_i.experts.0.w1 block.ff_i.experts.0.w3 block.ff_i.experts.1.w1
6912 2560: block.ff_i.experts.1.w3 block.ff_i.experts.2.w1 block.ff_i.experts.2.w3
6912 2560: block.ff_i.experts.3.w1 block.ff_i.experts.3.w3
2560 6912: block.ff_i.experts.0.w2 block.ff_i.experts.1.w2 block.ff_i.experts.2.w2
2560 6912: block.ff_i.experts.3.w2
4 2560: block.ff_i.gate
3584 2560: block.ff_i.shared_experts.w1 block.ff_i.shared_experts.w3
2560 3584: block.ff_i.shared_experts.w2
"""
