"""DoRA and LoKr on a transformer's fused layer: in parts, and kept; peft merges the layer whole."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.numpy import save_file
from transformer_nets import Tensors, built, cut_by_map, original_shapes, row_map

from prolora_jax.adapters.fitting import fit
from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.errors import AdapterRefused
from prolora_jax.io.base_models.checkpoint import load_base_model, with_whole
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.plans.options import MigrationOptions, factor_rank
from prolora_jax.plans.report import DORA_KEPT
from prolora_jax.verification.file import verify_file

pytestmark = pytest.mark.usefixtures("little_optimized")

QKV = "double_blocks.0.img_attn.qkv"
PARTS = {name for name, (original, _) in row_map("flux").items() if original == QKV}


class Given(NamedTuple):
    """Two base models on the disk, the fused weight of the first, and a DoRA of peft's for it."""

    source: Path
    target: Path
    weight: np.ndarray
    tensors: Tensors
    update: np.ndarray
    """What peft's merge adds to the fused weight."""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("dora")
    net = built("flux")
    net.save_pretrained(folder / "source" / "transformer")
    weight = np.zeros(original_shapes("flux")[QKV])
    for name in PARTS:
        (rows,) = row_map("flux")[name][1] or ()
        weight[slice(*rows)] = net.get_submodule(name).weight.detach().numpy()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor += 0.1 * tensor.std(correction=0) * torch.randn(tensor.shape)
    net.save_pretrained(folder / "target" / "transformer")
    return Given(folder / "source", folder / "target", weight, *merged_by_peft(weight))


def merged_by_peft(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    """A DoRA on the authors' layer as peft writes it, and what its merge adds to the weight."""
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight))
    block = torch.nn.ModuleDict({"img_attn": torch.nn.ModuleDict({"qkv": linear})})
    net = torch.nn.ModuleDict({"double_blocks": torch.nn.ModuleList([block])})
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["qkv"], use_dora=True)
    model: Any = get_peft_model(net, config)  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            random = 0.2 * torch.randn(parameter.shape, generator=generator)
            if "magnitude" in name:
                parameter.mul_(1.0 + random)
            elif "lora_" in name:
                parameter.copy_(random)
    state = get_peft_model_state_dict(model)
    tensors = {
        key.replace("base_model.model.", "diffusion_model."): value.detach().numpy().copy()
        for key, value in state.items()
    }
    after = model.merge_and_unload().get_submodule(QKV).weight.detach().numpy()
    return tensors, after - weight


def test_rows_of_a_dora_s_magnitude_go_with_the_rows_of_its_layer(given: Given) -> None:
    source = load_base_model(given.source)
    adapter = parse(given.tensors, {}, "given", structured=True)
    fitted = fit(adapter, source.spec, matrix=source.matrix, factor_rank=factor_rank("exact"))
    found = {m.path.removeprefix("transformer."): m for m in fitted.adapter.modules}
    wanted = cut_by_map("flux", {QKV: given.update})
    assert found.keys() == wanted.keys() == PARTS
    for name, update in wanted.items():
        module = found[name]
        ours = module.scale * module.up.astype(np.float64) @ module.down.astype(np.float64)
        np.testing.assert_allclose(ours, update, atol=1e-6 * np.abs(given.weight).max() * 10)


@pytest.mark.parametrize("dora", ["fold", "keep"])
def test_a_dora_on_a_kept_layer_moves_whole(given: Given, tmp_path: Path, dora: Any) -> None:
    save_file(given.tensors, tmp_path / "in.safetensors")
    options = MigrationOptions(
        fused="keep", dora=dora, min_similarity=-1.0, basis_rank="rank=8", factor_rank="exact"
    )
    out = tmp_path / "out.safetensors"
    places = tmp_path / "in.safetensors", given.source, given.target, out
    (module,) = migrate_file(*places, options).report.modules
    assert module.path == f"transformer.{QKV}"
    assert (DORA_KEPT in module.flags) == (dora == "keep")
    assert verify_file(out).ok


def test_lokr_is_cut_nowhere_and_taken_where_its_layer_is_kept(given: Given) -> None:
    rng = np.random.default_rng(5)
    w1, w2 = (rng.standard_normal(shape).astype(np.float32) for shape in ((8, 4), (12, 8)))
    stem = f"lycoris_{QKV.replace('.', '_')}"
    adapter = parse({f"{stem}.lokr_w1": w1, f"{stem}.lokr_w2": w2}, {}, "given", structured=True)
    source, target = load_base_model(given.source), load_base_model(given.target)
    how: dict[str, Any] = {"factor_rank": factor_rank("exact")}
    with pytest.raises(AdapterRefused, match="unsupported-algorithm"):
        fit(adapter, source.spec, matrix=source.matrix, **how)
    kept, _ = with_whole(source, target)
    (module,) = fit(adapter, kept.spec, matrix=kept.matrix, **how).adapter.modules
    assert module.path == f"transformer.{QKV}"
    np.testing.assert_allclose(module.scale * module.up @ module.down, np.kron(w1, w2), atol=1e-5)
