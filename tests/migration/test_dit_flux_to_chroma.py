"""Flux.1 to Chroma, which came of it: blocks are alike, modulation is a small net of its own."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformer_nets import KINDS, built, dense, pairs

from prolora_jax.migration.one_file import migrate_file
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import Action, Skip
from prolora_jax.verification.file import verify_file

pytestmark = [
    pytest.mark.usefixtures("little_optimized"),
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
]

BLOCK = "transformer_blocks.0."
IN_BOTH = tuple(f"{BLOCK}attn.to_{x}" for x in "qkv")
MODULATION = f"{BLOCK}norm1.linear"


def as_chroma(flux: torch.nn.Module) -> torch.nn.Module:
    """A tiny Chroma whose blocks are those of a Flux.1 but for a tenth of noise."""
    alike = ("patch_size", "in_channels", "num_layers", "num_single_layers", "axes_dims_rope")
    alike += ("attention_head_dim", "num_attention_heads", "joint_attention_dim")
    config = {key: KINDS["flux"].config[key] for key in alike}
    small = {"approximator_num_channels": 8, "approximator_hidden_dim": 16}
    net = diffusers.ChromaTransformer2DModel(**config, **small, approximator_layers=1)
    known = flux.state_dict()
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name in known and known[name].shape == tensor.shape:
                own = known[name]
                noise = 0.1 * own.std(correction=0) * torch.randn(own.shape)
                tensor.copy_(own + noise)
    return net


def test_copy_and_projection_are_told_apart_and_modulation_stays_behind(tmp_path: Path) -> None:
    # What converters by hand were asked: is it more than a copy? Both reports and outputs say it.
    flux = built("flux")
    flux.save_pretrained(tmp_path / "source" / "transformer")
    as_chroma(flux).save_pretrained(tmp_path / "target" / "transformer")
    given = pairs(dict.fromkeys(IN_BOTH, (32, 32)) | {MODULATION: (192, 32)})
    tensors = {}
    for name, (down, up) in given.items():
        tensors |= {f"transformer.{name}.lora_A.weight": down}
        tensors |= {f"transformer.{name}.lora_B.weight": up}
    save_file(tensors, tmp_path / "in.safetensors")
    places = tmp_path / "in.safetensors", tmp_path / "source", tmp_path / "target"
    updates = dense(given)
    for method, action in (("copy", Action.COPY), ("prolora-full", Action.PROJECT)):
        out = tmp_path / f"{method}.safetensors"
        options = MigrationOptions(method=method, min_similarity=0.0)
        report = migrate_file(*places, out, options).report
        assert {(m.path, m.action) for m in report.modules} == {
            (f"transformer.{name}", action) for name in IN_BOTH
        }
        assert [(s.source_path, s.reason) for s in report.skipped] == [
            (f"transformer.{MODULATION}", Skip.REMOVED_IN_TARGET)
        ]
        written = load_file(out)
        for module in report.modules:
            stem, update = module.path, updates[module.path.removeprefix("transformer.")]
            found = written[f"{stem}.lora_B.weight"] @ written[f"{stem}.lora_A.weight"]
            apart = np.linalg.norm(found - update) / np.linalg.norm(update)
            assert apart < 1e-6 if action is Action.COPY else 0.02 < apart < 1.0, apart
            assert (module.phi_left is None) == (action is Action.COPY)
        assert verify_file(out).ok
