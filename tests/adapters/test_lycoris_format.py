"""LyCORIS' plain LoRA and LoCon files: it writes and diffusers computes; ours writes, it computes.

Its `forward` is asked, not its merging functions (formats.md 7).
"""

import logging
from typing import Any

import builders
import numpy as np
import pytest
import torch
from builders import TINY_XL, assert_deltas, random_module
from lycoris.wrapper import LycorisNetwork, create_lycoris, create_lycoris_from_weights
from safetensors.numpy import load_file, save_file

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.io.adapters.files import load_adapter, save_adapter

XL = spec_from_config(builders.TINY_XL_TABLE, name="xl")
LAYERS = [
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "unet.down_blocks.1.resnets.0.conv_shortcut",
    "unet.down_blocks.1.resnets.0.conv1",
    "unet.mid_block.attentions.0.transformer_blocks.2.attn2.to_k",
]


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)


@pytest.mark.proves("lycoris LoCon", "read", "lycoris-lora writes, diffusers computes")
def test_files_of_lycoris(tmp_path):
    LycorisNetwork.apply_preset({"target_module": ["Transformer2DModel", "ResnetBlock2D"]})
    unet = builders.build_unet(TINY_XL)
    made: Any = create_lycoris(
        unet, 1.0, linear_dim=4, linear_alpha=6, conv_dim=4, conv_alpha=6, algo="lora"
    )
    made.apply_to()
    state = {key: tensor.detach().numpy() for key, tensor in made.state_dict().items()}
    rng = np.random.default_rng(0)
    for key, tensor in state.items():  # it starts `up` at zero
        if "lora_" in key:
            state[key] = rng.standard_normal(tensor.shape).astype(np.float32)
    assert all(key.startswith("lycoris_") for key in state)
    save_file(state, tmp_path / "lycoris.safetensors")
    # Diffusers knows the same keys under kohya's prefix.
    kohya = {key.replace("lycoris_", "lora_unet_", 1): tensor for key, tensor in state.items()}
    save_file(kohya, tmp_path / "kohya.safetensors")
    want = builders.deltas_by_diffusers(TINY_XL, tmp_path / "kohya.safetensors")
    adapter = load_adapter(tmp_path / "lycoris.safetensors", XL)
    assert adapter.format == "kohya-diffusers"
    assert {module.scale for module in adapter.modules} == {1.5}
    assert_deltas(adapter, want)


def update_by_forward(unet: Any, path: str) -> np.ndarray:
    """What the patched layer makes of each unit input; its own weight and bias are zero."""
    layer = unet.get_submodule(path.removeprefix("unet."))
    shape = XL.modules[path].shape
    units = torch.eye(int(np.prod(shape[1:]))).reshape(-1, *shape[1:])
    with torch.no_grad():
        found = layer(units)
    if found.ndim == 4:  # padded: the middle pixel sees the whole window
        found = found[:, :, shape[2] // 2, shape[3] // 2]
    return found.numpy().T


@pytest.mark.proves("kohya-diffusers", "write", "lycoris-lora loads")
def test_lycoris_reads_what_is_written(tmp_path):
    modules = tuple(
        random_module(path, XL, rank=2 + i, alpha=(3.0, -2.0, 1.0)[i % 3], seed=i)
        for i, path in enumerate(LAYERS)
    )
    adapter = Adapter(modules, "kohya-diffusers")
    save_adapter(adapter, tmp_path / "out.safetensors", base=XL)
    weights = {
        key.replace("lora_unet_", "lycoris_", 1): torch.from_numpy(tensor)
        for key, tensor in load_file(tmp_path / "out.safetensors").items()
    }
    unet = builders.build_unet(TINY_XL)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.zero_()
    network, _ = create_lycoris_from_weights(1.0, "", unet, weights)
    assert len(network.loras) == len(LAYERS)
    network.apply_to()
    for module in modules:
        found = update_by_forward(unet, module.path)
        want = builders.delta(module)
        np.testing.assert_allclose(found, want, atol=1e-5 * np.abs(want).max(), err_msg=module.path)
