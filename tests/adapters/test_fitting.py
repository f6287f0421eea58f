"""`fit`: the one way in for an adapter and a base model; what is said when both are wrong."""

from dataclasses import replace

import numpy as np
import pytest

from prolora_jax.adapters import fitting
from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.fitting import fit
from prolora_jax.architectures.identify import published_spec
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import AdapterRefused, Refusal


def lora(spec: BaseModelSpec) -> Adapter:
    """An adapter of rank 1 for the attention layers of a published model, in Flax's names."""
    modules = []
    for name, path in spec.by_flax_name.items():
        out, width, *window = spec.modules[path].shape
        if spec.modules[path].kind_is("attn") and not window:
            down, up = np.ones((1, width), np.float32), np.ones((out, 1), np.float32)
            modules.append(LoraModule(name, down, up))
    return Adapter(tuple(modules), "flax", origin="x.msgpack")


def named(adapter: Adapter, spec: BaseModelSpec) -> Adapter:
    """The same in dotted paths."""
    paths = spec.by_flax_name
    return replace(adapter, modules=tuple(replace(m, path=paths[m.path]) for m in adapter.modules))


@pytest.mark.parametrize("flax", [True, False])
def test_the_base_model_is_looked_at_once(monkeypatch: pytest.MonkeyPatch, flax: bool):
    spec, asked = published_spec("ssd-1b"), []
    adapter = lora(spec) if flax else named(lora(spec), spec)

    def counted(adapter: Adapter, *args: object) -> tuple[str, ...]:
        asked.append([m.path for m in adapter.modules])
        return ("a flag",)

    monkeypatch.setattr(fitting, "check_base", counted)
    fitted = fit(adapter, spec)
    assert fitted.flags == ("a flag",)
    assert [m.path for m in fitted.adapter.modules] == asked[0]
    assert {*asked[0]} <= {*spec.modules}
    assert len(asked) == 1


@pytest.mark.parametrize("flax", [True, False])
def test_another_base_models_adapter_is_refused_though_it_fits(flax: bool):
    small, large = published_spec("ssd-1b"), published_spec("sdxl")
    adapter = lora(small) if flax else named(lora(small), small)
    with pytest.raises(
        AdapterRefused, match="adapter for ssd-1b .*expected one for sdxl"
    ) as caught:
        fit(adapter, large)
    assert caught.value.code is Refusal.WRONG_BASE
    assert fit(adapter, large, "sdxl").flags == ("assumed-base: sdxl",)


def test_another_base_model_says_more_than_modules_that_are_missing():
    spec = published_spec("sdxl")
    with pytest.raises(AdapterRefused, match="expected one for sd15") as caught:
        fit(named(lora(spec), spec), published_spec("sd15"))
    assert caught.value.code is Refusal.WRONG_BASE


def test_modules_that_no_base_model_has_are_named():
    spec = published_spec("sd15")
    down, up = np.ones((1, 4), np.float32), np.ones((4, 1), np.float32)
    adapter = Adapter((LoraModule("unet.nowhere", down, up),), "diffusers", origin="x.safetensors")
    with pytest.raises(AdapterRefused, match=r"1/1 modules are not in base model .*unet\.nowhere"):
        fit(adapter, spec)
