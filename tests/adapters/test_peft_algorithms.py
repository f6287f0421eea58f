"""IA3, OFT, BOFT, AdaLoRA and VeRA of peft: it writes a folder, merged weights say the update."""

import json
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
import torch
from layers import (
    CONV,
    LINEAR,
    SHAPES,
    SPEC,
    SQUARE,
    assert_read,
    build_net,
    layer_of,
    save,
    weights_of,
)
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    IA3Config,
    LoraConfig,
    OFTConfig,
    VeraConfig,
    get_peft_model,
)
from peft.tuners.boft import layer as boft_layer
from safetensors.numpy import load_file

from prolora_jax.adapters.fitting import fit
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.layout import weight_to_matrix
from prolora_jax.migration.files import Writing
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.verification.file import verify_file

NAMES = {path: path.rpartition(".")[2] for path in SHAPES}


def written(
    config: Any, folder: Path, *, size: float = 0.1, full: float = 0.0
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A folder of peft with random numbers; the weights, and what merging adds to them.

    Args:
        config: of peft.
        folder: to write.
        size: of the numbers.
        full: what they are random about.
    """
    net = build_net()
    before = weights_of(net)
    model: Any = get_peft_model(net, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                about = full if "boft_R" not in key else 0.0
                parameter.copy_(about + size * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(folder))
    # In float64, so that what merging adds is not lost in the rounding of the weights.
    merged: Any = model.double().merge_and_unload()
    after = {path: layer_of(merged, path).weight.detach().numpy() for path in SHAPES}
    adds = {p: weight_to_matrix(after[p]) - before[p].astype(np.float64) for p in SHAPES}
    return before, {path: update for path, update in adds.items() if update.any()}


@pytest.mark.proves("peft IA3", "read", "peft writes, its merged weights say it")
@pytest.mark.parametrize("feedforward", [[], ["to_q", "conv2"], ["conv1"]])
def test_ia3(tmp_path, feedforward):
    config = IA3Config(target_modules=list(NAMES.values()), feedforward_modules=feedforward)
    weights, want = written(config, tmp_path, size=0.5, full=1.0)
    assert len(want) == 3
    assert_read(tmp_path, weights, want)


@pytest.mark.parametrize("feedforward", [[], ["to_q", "conv2"]])
def test_biases_that_ia3_scales_are_companions(tmp_path, feedforward):
    net = build_net()
    biases = {path: layer_of(net, path).bias.detach().numpy().copy() for path in SHAPES}
    config = IA3Config(target_modules=list(NAMES.values()), feedforward_modules=feedforward)
    model: Any = get_peft_model(net, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.copy_(1 + 0.5 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(tmp_path))
    merged: Any = model.merge_and_unload()
    adds = {p: layer_of(merged, p).bias.detach().numpy() - biases[p] for p in SHAPES}
    given: Any = {"matrix": weights_of(build_net()).__getitem__, "bias": biases.__getitem__}
    fitted = fit(load_adapter(tmp_path, structured=True), SPEC, **given).adapter
    found = {c.path: c.array for c in fitted.companions}
    assert found.keys() == {path for path, added in adds.items() if added.any()}
    assert len(found) == 3 - len(feedforward)
    for path, array in found.items():
        np.testing.assert_allclose(array, adds[path], rtol=0, atol=1e-7)
    given["bias"] = lambda _: None  # layers without one
    assert fit(load_adapter(tmp_path, structured=True), SPEC, **given).adapter.companions == ()


def test_scaled_biases_move_with_their_layers(tmp_path):
    names = ["to_q", "to_out.0", "conv_shortcut"]
    plain = builders.build_unet(builders.TINY_XL)
    plain.save_pretrained(tmp_path / "base" / "unet")
    config = IA3Config(target_modules=names, feedforward_modules=[])
    model: Any = get_peft_model(builders.build_unet(builders.TINY_XL), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.copy_(1 + 0.5 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(tmp_path / "ia3"))
    merged = model.merge_and_unload().state_dict()
    adds = {
        "unet." + name.removesuffix(".bias"): (merged[name] - bias).numpy()
        for name, bias in plain.state_dict().items()
        if name.endswith(".bias")
    }
    base, out = tmp_path / "base", tmp_path / "out.safetensors"
    how = MigrationOptions(method="copy", factor_rank="exact")
    migrate_file(tmp_path / "ia3", base, base, out, how, Writing(format="kohya"))
    written = load_adapter(out, load_base_model(base).spec)
    found = {c.path: c.array for c in written.companions}
    assert found.keys() == {path for path, added in adds.items() if added.any()}
    assert len(found) > 10
    for path, array in found.items():
        np.testing.assert_allclose(array, adds[path], rtol=0, atol=1e-6)
    checked = verify_file(out)
    assert checked.ok, [checked.problems, *((m.path, m.problems) for m in checked.modules)]


OFT: list[dict[str, Any]] = [
    {"oft_block_size": 4},
    {"oft_block_size": 4, "use_cayley_neumann": False},
    {"oft_block_size": 4, "use_cayley_neumann": False, "block_share": True},
    {"oft_block_size": 4, "coft": True, "eps": 0.05, "use_cayley_neumann": False},
    {"oft_block_size": 8, "block_share": True, "coft": True, "eps": 0.3},
    *({"oft_block_size": 4, "num_cayley_neumann_terms": terms} for terms in (2, 3, 4, 7)),
]


@pytest.mark.proves("peft OFT", "read", "peft writes, its merged weights say it")
@pytest.mark.parametrize("options", OFT, ids=str)
def test_oft(tmp_path, options):
    weights, want = written(OFTConfig(target_modules=list(NAMES.values()), **options), tmp_path)
    assert len(want) == 3
    assert_read(tmp_path, weights, want)


@pytest.mark.proves("peft BOFT", "read", "peft writes, its merged weights say it")
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_boft(tmp_path, monkeypatch, stages):
    # Without its GPU code peft makes one stage only.
    code = BlockDiagonal if stages > 1 else None
    monkeypatch.setattr(boft_layer, "get_fbd_cuda", lambda: code)
    options = {"boft_block_size": 2, "boft_n_butterfly_factor": stages}
    config = BOFTConfig(target_modules=list(NAMES.values()), **options)
    weights, want = written(config, tmp_path, size=0.3, full=1.0)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert {v.shape[0] for k, v in stored.items() if k.endswith("boft_R")} == {stages}
    assert_read(tmp_path, weights, want)


class BlockDiagonal:
    """What peft's GPU code does: each stage's blocks on the diagonal of a matrix."""

    @staticmethod
    def forward(blocks: torch.Tensor) -> list[torch.Tensor]:
        return [torch.stack([torch.block_diag(*stage) for stage in blocks])]


@pytest.mark.proves("AdaLoRA", "read", "peft writes, its merged weights say it")
@pytest.mark.parametrize("alpha", [6, 0])
def test_adalora(tmp_path, alpha):
    options: dict[str, Any] = {"init_r": 4, "lora_alpha": alpha, "total_step": 10}
    config = AdaLoraConfig(target_modules=list(NAMES.values()), **options)
    weights, want = written(config, tmp_path, size=0.5)
    assert len(want) == 3
    assert_read(tmp_path, weights, want)


@pytest.mark.proves("VeRA", "read", "peft writes, its merged weights say it")
def test_vera(tmp_path):
    config = VeraConfig(r=4, target_modules=["to_q"])
    weights, want = written(config, tmp_path, size=0.5)
    assert_read(tmp_path, weights, want)


# --- refusals ---


def refused(folder: Path, match: str, code: Refusal) -> None:
    with pytest.raises(AdapterRefused, match=match) as caught:
        load_adapter(folder, SPEC, structured=True)
    assert caught.value.code is code


@pytest.mark.filterwarnings("ignore:Specified to not save vera_A and vera_B:UserWarning")
def test_vera_without_its_shared_matrices(tmp_path):
    written(VeraConfig(r=4, target_modules=["to_q"], save_projection=False), tmp_path)
    match = "unsupported-algorithm:VeRA: found no shared vera_A and vera_B; .*random seed; save"
    refused(tmp_path, match, Refusal.UNSUPPORTED_ALGORITHM)


def edited(folder: Path, **fields: Any) -> Path:
    """The folder, with other fields in its configuration; None takes one out."""
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


SETTINGS = [
    ({"use_cayley_neumann": None}, "OFT: found use_cayley_neumann None in the config"),
    ({"num_cayley_neumann_terms": 10**9}, "found num_cayley_neumann_terms 1000000000; .*1 to 100"),
    ({"coft": True, "eps": "x"}, "found coft with eps x; expected a number above 0"),
]


@pytest.mark.parametrize(("fields", "match"), SETTINGS)
def test_settings_of_oft(tmp_path, fields, match):
    written(OFTConfig(target_modules=["to_q"], oft_block_size=4), tmp_path)
    refused(edited(tmp_path, **fields), match, Refusal.UNSUPPORTED_ALGORITHM)


def test_adalora_without_its_configuration(tmp_path):
    config = AdaLoraConfig(target_modules=["to_q"], init_r=4, total_step=10)
    written(config, tmp_path / "a")
    state = load_file(tmp_path / "a" / "adapter_model.safetensors")
    file = save(state, tmp_path / "alone.safetensors")
    match = "unsupported-algorithm:AdaLoRA: found no lora_alpha; expected peft's adapter_config"
    refused(file, match, Refusal.UNSUPPORTED_ALGORITHM)


def test_ia3_whose_axis_only_a_pattern_says(tmp_path):
    config = IA3Config(target_modules=["conv2"], feedforward_modules=["conv2"])
    written(config, tmp_path, full=1.0)
    match = "and a pattern for feedforward_modules of IA3; expected names in feedforward_modules"
    refused(edited(tmp_path, feedforward_modules=".*conv2"), match, Refusal.SHAPE_MISMATCH)


KINDS = [
    ({"use_dora": True}, "found tensors of plain LoRA, and a configuration that says DoRA: use_d"),
    ({"peft_type": "IA3"}, "found tensors of plain LoRA, and a configuration that says ia3; exp"),
    (
        {"peft_type": "ADALORA"},
        "of plain LoRA, and a configuration that says adalora",
    ),
]


@pytest.mark.parametrize(("fields", "match"), KINDS)
def test_a_configuration_of_other_tensors(tmp_path, fields, match):
    written(LoraConfig(target_modules=["to_q"], r=4), tmp_path)
    refused(edited(tmp_path, **fields), f"{LINEAR}: .*{match}", Refusal.INCOMPLETE_PAIR)


def name_of(path: str, end: str) -> str:
    return f"base_model.model.{path.removeprefix('unet.')}.{end}"


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


MISFITS = [
    ("OFT", LINEAR, {"oft_R.weight": zeros(6, 5)}, r"oft_R \(6, 5\) of OFT; .*size = 24"),
    ("OFT", LINEAR, {"oft_R.weight": zeros(5, 6)}, r"oft_R \(5, 6\) of OFT; .*one block"),
    ("OFT", CONV, {"oft_R.weight": zeros(5, 6)}, r"of OFT; .*size = 72, the columns"),
    (
        "BOFT",
        LINEAR,
        {"boft_R": zeros(1, 5, 5, 5), "boft_s": zeros(16, 1)},
        r"boft_R \(1, 5, 5, 5\), .*of BOFT; .*number \* size = 24, number a multiple",
    ),
    (
        "BOFT",
        LINEAR,
        {"boft_R": zeros(3, 6, 4, 4), "boft_s": zeros(16, 1)},
        r"boft_R \(3, 6, 4, 4\), .*number a multiple of 2\*\*\(stages - 1\)",
    ),
    (
        "BOFT",
        LINEAR,
        {"boft_R": zeros(1, 6, 4, 4), "boft_s": zeros(24, 1)},
        r"boft_s \(24, 1\) of BOFT; .*boft_s of 16 numbers, for a weight \(16, 24\)",
    ),
    ("IA3", LINEAR, {"ia3_l": zeros(24, 1)}, r"ia3_l \(24, 1\) of IA3; .*each of 16 rows"),
    ("IA3", LINEAR, {"ia3_l": zeros()}, r"ia3_l \(\) of IA3; .*each of 16 rows"),
    ("IA3", LINEAR, {"ia3_l": zeros(24)}, r"ia3_l \(24,\) of IA3; .*each of 16 rows"),
    ("IA3", SQUARE, {"ia3_l": zeros(1, 8, 1, 1)}, r"ia3_l \(1, 8, 1, 1\) of IA3; .*of 16 rows"),
    (
        "ADALORA",
        LINEAR,
        {"lora_A": zeros(4, 24), "lora_B": zeros(16, 4), "lora_E": zeros(3, 1)},
        r"lora_E \(3, 1\), .*of AdaLoRA; expected lora_A \(rank, in\)",
    ),
    (
        "VERA",
        LINEAR,
        {"vera_lambda_b": zeros(16), "vera_lambda_d": zeros(3)},
        r"vera_lambda_d \(3,\) of VeRA; expected vera_lambda_b \(16,\)",
    ),
]


@pytest.mark.parametrize(("kind", "path", "parts", "match"), MISFITS)
def test_tensors_that_are_not_those_of_the_layer(tmp_path, kind, path, parts, match):
    state = {name_of(path, end): array for end, array in parts.items()}
    if kind == "VERA":
        state |= {"base_model.vera_A": zeros(4, 24), "base_model.vera_B": zeros(16, 4)}
    save(state, tmp_path / "adapter_model.safetensors")
    config = {"use_cayley_neumann": False, "lora_alpha": 4, "peft_type": kind}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    refused(tmp_path, f"{path}: found .*{match}.*; name the base", Refusal.SHAPE_MISMATCH)
