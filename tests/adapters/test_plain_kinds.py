"""Kinds of training whose files are plain LoRA: they are read as that."""

from typing import Any

import builders
import numpy as np
import pytest
import torch
from builders import TINY_XL, assert_deltas
from layers import CONV, LINEAR, SPEC, build_net, layer_of, save
from lycoris.modules.dylora import DyLoraModule
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_lorafa_optimizer

from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.io.adapters.files import load_adapter

XL = spec_from_config(builders.TINY_XL_TABLE, name="xl")


@pytest.mark.proves("DyLoRA", "read", "lycoris-lora writes, the sum of its blocks")
def test_dylora(tmp_path):
    net, generator = build_net(), torch.Generator().manual_seed(0)
    state, want = {}, {}
    for path in (LINEAR, CONV):
        name = "lora_unet_" + path.removeprefix("unet.").replace(".", "_")
        module: Any = DyLoraModule(
            name, layer_of(net, path), 1.0, lora_dim=6, alpha=3, block_size=2
        )
        blocks = list(zip(module.up_list, module.down_list, strict=True))
        assert len(blocks) == 3
        with torch.no_grad():
            for block in (*module.up_list, *module.down_list):
                block.copy_(torch.randn(block.shape, generator=generator))
            total = sum(up.double() @ down.double() for up, down in blocks)
        want[path] = 0.5 * np.asarray(total)
        written = module.custom_state_dict() | {"alpha": module.alpha}
        state |= {f"{name}.{key}": tensor.detach().numpy() for key, tensor in written.items()}
    assert_deltas(load_adapter(save(state, tmp_path / "a.safetensors"), SPEC), want)


@pytest.mark.proves("LoRA-FA", "read", "peft trains, writes and computes")
def test_lora_fa(tmp_path):
    config = LoraConfig(r=4, lora_alpha=6, target_modules=builders.ATTENTION)
    model: Any = get_peft_model(builders.build_unet(TINY_XL), config)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = create_lorafa_optimizer(model, r=4, lora_alpha=6, lr=0.1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    after = model.state_dict()
    changed = {key for key, value in before.items() if not torch.equal(after[key], value)}
    assert changed == {key for key in before if ".lora_B." in key}
    model.save_pretrained(str(tmp_path))
    assert_deltas(load_adapter(tmp_path, XL), builders.deltas_by_peft(model.base_model.model))


@pytest.mark.proves("B-LoRA", "read", "diffusers writes, peft computes")
def test_b_lora(tmp_path):
    # Two blocks of attention, one for content and one for style, and nothing else.
    unet = builders.build_unet(TINY_XL)
    blocks = [f"up_blocks.0.attentions.{i}.transformer_blocks.0.attn1.to_q" for i in (0, 1)]
    builders.add_lora(unet, targets=blocks)
    file = builders.save_by_diffusers(unet, tmp_path)
    want = builders.deltas_by_peft(unet)
    assert len(want) == 2
    assert_deltas(load_adapter(file, XL), want)
