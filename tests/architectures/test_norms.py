"""Norms that follow from the layers behind them: of UNets and of CLIP, and of nothing else."""

from dit_tables import header, table

from prolora_jax.architectures.identify import published_spec
from prolora_jax.architectures.norms import norms
from prolora_jax.architectures.recognition import spec_from_shapes


def test_no_norm_is_invented_for_transformers():
    for base in ("pixart_sigma_1024", "wan21_t2v_1_3b", "ltx_video_2b", "flux1_dev"):
        assert norms(spec_from_shapes(header(table(base)), name=base)) == {}


def test_norms_of_unets_and_of_their_text_encoders():
    found = norms(published_spec("sd15", text_encoders=True))
    norm = "unet.down_blocks.0.attentions.0.transformer_blocks.0.norm2"
    assert found[norm].feeds == norm.replace("norm2", "attn2.to_q")
    assert found[norm].width == 320
    assert "text_encoder.text_model.encoder.layers.3.layer_norm1" in found
