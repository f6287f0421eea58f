"""Other algorithms than plain LoRA on running nets; peft's forward is the oracle."""

from typing import Any

import builders
import numpy as np
import pytest
import torch
import unets
from numpy.testing import assert_allclose
from peft import LoHaConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.numpy import save_file

import prolora_jax as pl
from prolora_jax.adapters.algorithms.cutting import FactorRank
from prolora_jax.errors import AdapterRefused
from prolora_jax.nets.adapters.adapted import adapted
from prolora_jax.nets.adapters.lora import attach, merge, unmerge
from prolora_jax.nets.unet.loading import load_unet

ATOL = 5e-5  # float32 nets whose predictions are about 1


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A net, a DoRA and a LoHa for it that peft wrote, and what it predicts with each."""
    folder, given = tmp_path_factory.mktemp("nets"), unets.inputs(unets.SMALLEST)
    net, params = load_unet(unets.save(unets.torch_net(unets.SMALLEST), folder / "base"))
    spec = pl.load_base_model(folder / "base").spec
    found: dict[str, Any] = {"net": net, "params": params, "given": given}
    one = unets.torch_net(unets.SMALLEST)
    builders.add_lora(one, rank=2, alpha=3, use_dora=True)
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1.2)
    file = builders.save_by_diffusers(one, folder / "dora")
    found["dora"] = (
        pl.load_adapter(file, spec, structured=True),
        unets.predicted_by_torch(one, given),
    )
    config = LoHaConfig(r=2, alpha=2, target_modules=builders.ATTENTION)
    patched: Any = inject_adapter_in_model(config, unets.torch_net(unets.SMALLEST))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in patched.named_parameters():
            if "hada_" in name:
                parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator))
    state = {k: v.numpy() for k, v in get_peft_model_state_dict(patched).items()}
    save_file(state, folder / "loha.safetensors")
    loha = pl.load_adapter(folder / "loha.safetensors", spec, structured=True)
    found["loha"] = loha, unets.predicted_by_torch(patched, given)
    return found


@pytest.mark.parametrize("name", ["dora", "loha"])
def test_merged_as_peft(made: dict[str, Any], name: str):
    adapter, want = made[name]
    net, params, given = made["net"], made["params"], made["given"]
    found = unets.predicted(net, merge(params, adapter), given)
    assert np.abs(found - unets.predicted(net, params, given)).max() > 0.05
    assert_allclose(found, want, rtol=0, atol=ATOL)


def test_beside_the_kernels(made: dict[str, Any]):
    adapter, want = made["loha"]
    tree = attach(made["params"], {"a": adapter})
    with adapted({"a": 1.0}):
        found = unets.predicted(made["net"], tree, made["given"])
    assert_allclose(found, want, rtol=0, atol=ATOL)


def test_dora_beside_the_kernels_is_as_good_as_its_factors(made: dict[str, Any]):
    adapter, want = made["dora"]
    errors = []
    for rank in (FactorRank(1.0, 1), FactorRank(1.0, None)):
        tree = attach(made["params"], {"a": adapter}, factor_rank=rank)
        with adapted({"a": 1.0}):
            found = unets.predicted(made["net"], tree, made["given"])
        errors.append(float(np.abs(found - want).max()))
    assert errors[1] < ATOL < errors[0]


def test_what_depends_on_the_kernels_is_not_taken_off_again(made: dict[str, Any]):
    params = made["params"]
    loha, _ = made["loha"]
    back = unmerge(merge(params, loha), loha)
    assert_allclose(
        unets.predicted(made["net"], back, made["given"]),
        unets.predicted(made["net"], params, made["given"]),
        rtol=0,
        atol=ATOL,
    )
    dora, _ = made["dora"]
    with pytest.raises(AdapterRefused, match="needs-source-weights:DoRA"):
        unmerge(merge(params, dora), dora)
