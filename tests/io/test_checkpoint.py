"""Base models on disk, as diffusers writes them."""

import json
import shutil
from pathlib import Path

import builders
import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from safetensors.torch import load_file, save_file

from prolora_jax.errors import BaseModelError, Refusal, UsageError
from prolora_jax.io.base_models.checkpoint import load_base_model

WEIGHTS = "diffusion_pytorch_model.safetensors"
CONV = "unet.up_blocks.0.resnets.0.conv1"
LINEAR = "unet.add_embedding.linear_1"


@pytest.fixture(scope="module")
def unet():
    return builders.build_unet(builders.TINY_XL)


@pytest.fixture(scope="module")
def folder(unet, tmp_path_factory) -> Path:
    return builders.save_folder(unet, tmp_path_factory.mktemp("models") / "tiny-xl")


@pytest.fixture(scope="module")
def state(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / WEIGHTS)


def matrices(unet: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        "unet." + name.removesuffix(".weight"): weight.detach()
        for name, weight in unet.named_parameters()
        if name.endswith(".weight") and weight.ndim > 1
    }


def test_a_pipelines_folder(unet, folder):
    model = load_base_model(folder)
    want = matrices(unet)
    assert {path: m.shape for path, m in model.spec.modules.items()} == {
        path: tuple(weight.shape) for path, weight in want.items()
    }
    assert model.spec.name == "tiny-xl"
    assert model.location == str(folder)
    for path, weight in want.items():
        assert_array_equal(model.weight(path), weight.numpy())


def test_every_way_to_name_the_same_model(folder, state, tmp_path):
    bare, piped = tmp_path / "bare.safetensors", tmp_path / "piped.safetensors"
    save_file(state, bare)
    others = {"vae.decoder.conv_in.weight": torch.ones(2, 2, 3, 3), "text_encoder.x": torch.ones(1)}
    save_file({f"unet.{key}": tensor for key, tensor in state.items()} | others, piped)
    places = [folder, folder / "unet", folder / "unet" / WEIGHTS, bare, piped]
    models = [load_base_model(place) for place in places]
    assert [model.spec.name for model in models] == ["tiny-xl"] * 3 + ["bare", "piped"]
    for model in models:
        assert model.spec.modules == models[0].spec.modules
        assert model.fingerprint(CONV) == models[0].fingerprint(CONV)


def test_a_sharded_model_is_the_same_model(unet, folder, tmp_path):
    sharded = load_base_model(builders.save_folder(unet, tmp_path, shard_size="200KB"))
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 2
    whole = load_base_model(folder)
    assert sharded.spec.modules == whole.spec.modules
    for path in whole.spec.modules:
        assert sharded.fingerprint(path) == whole.fingerprint(path)


def test_a_variant_is_read_where_nothing_else_is(unet, folder, tmp_path):
    half = builders.build_unet(builders.TINY_XL).half()
    builders.save_folder(half, tmp_path, variant="fp16")
    assert load_base_model(tmp_path).weight(CONV).dtype == np.float16
    shutil.copy(folder / "unet" / WEIGHTS, tmp_path / "unet")
    assert load_base_model(tmp_path).weight(CONV).dtype == np.float32


def test_averaged_training_weights_are_no_variant(unet, tmp_path):
    builders.save_folder(unet, tmp_path, variant="non_ema")
    with pytest.raises(BaseModelError, match=r"found .*non_ema.*; expected diffusion_pytorch"):
        load_base_model(tmp_path)


def test_matrices_are_float32_and_flat(unet, folder):
    model = load_base_model(folder)
    weight = matrices(unet)[CONV].numpy()
    matrix = model.matrix(CONV)
    assert matrix.dtype == np.float32
    assert matrix.shape == model.spec.modules[CONV].matrix_shape
    assert_array_equal(matrix, weight.reshape(weight.shape[0], -1))


def test_some_rows_of_a_matrix(folder):
    model = load_base_model(folder)
    for path in model.spec.modules:
        np.testing.assert_array_equal(model.matrix(path, (1, 3)), model.matrix(path)[1:3])


def test_a_float64_weight_that_float32_does_not_hold(state, tmp_path):
    wide = {key: tensor.double() for key, tensor in state.items()}
    wide["conv_in.weight"][0, 0] = 1e300
    save_file(wide, tmp_path / "wide.safetensors")
    model = load_base_model(tmp_path / "wide.safetensors")
    assert np.isfinite(model.matrix("unet.conv_out")).all()
    message = (
        r"unet.conv_in: found 1e\+300 in a float64 weight; expected numbers that float32 holds"
    )
    with pytest.raises(BaseModelError, match=message) as caught:
        model.matrix("unet.conv_in")
    assert caught.value.code is Refusal.NON_FINITE


def test_stored_dtypes_are_kept(state, tmp_path):
    save_file({key: tensor.bfloat16() for key, tensor in state.items()}, tmp_path / "b.safetensors")
    model = load_base_model(tmp_path / "b.safetensors")
    assert model.weight(LINEAR).dtype == ml_dtypes.bfloat16
    assert_array_equal(
        model.matrix(LINEAR), state["add_embedding.linear_1.weight"].bfloat16().float().numpy()
    )


def test_fingerprints_depend_on_dtype_shape_and_bytes_alone(state, tmp_path):
    def fingerprint(name: str, tensor: torch.Tensor) -> str:
        file = tmp_path / f"{name}.safetensors"
        save_file(state | {"add_embedding.linear_1.weight": tensor}, file)
        return load_base_model(file).fingerprint(LINEAR)

    weight = state["add_embedding.linear_1.weight"]
    first = fingerprint("first", weight)
    assert len(first) == 32
    assert int(first, 16) >= 0
    assert fingerprint("again", weight.clone()) == first
    changed = weight.clone()
    changed[0, 0] += 1e-6
    others = [
        fingerprint("changed", changed),
        fingerprint("bits", weight.half().view(torch.bfloat16)),
        fingerprint("reshaped", weight.reshape(weight.shape[1], weight.shape[0])),
        fingerprint("half", weight.half()),
    ]
    assert len({first, *others}) == 5


def test_no_weight_is_read_before_it_is_asked_for(folder, tmp_path):
    broken = tmp_path / WEIGHTS
    shutil.copy(folder / "unet" / WEIGHTS, broken)
    model = load_base_model(broken)
    before = model.weight(LINEAR)
    with broken.open("r+b") as file:  # the file is mapped, so a change after loading shows
        file.seek(-before.nbytes, 2)
        file.write(bytes(before.nbytes))
    assert not model.weight(list(model.spec.modules)[-1]).all()


def test_an_unknown_module_names_the_nearest(folder):
    model = load_base_model(folder)
    with pytest.raises(KeyError, match=r"no module 'unet.x.conv_out'; nearest: unet.conv_out"):
        model.weight("unet.x.conv_out")


def refused(path: Path, match: str, code: Refusal) -> None:
    with pytest.raises(BaseModelError, match=match) as caught:
        load_base_model(path)
    assert caught.value.code is code
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_base_is_the_commands_fault(tmp_path):
    with pytest.raises(UsageError, match="nowhere: no such file or folder; expected a base model"):
        load_base_model(tmp_path / "nowhere")


def test_folders_without_weights(tmp_path):
    message = "found an empty folder; expected .*its unet/ or transformer/ folder"
    refused(tmp_path, message, Refusal.UNREADABLE_BASE)
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "transformer").mkdir()
    refused(tmp_path, "transformer: found an empty folder; expected", Refusal.UNREADABLE_BASE)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"")
    refused(tmp_path, "found only diffusion_pytorch_model.bin, a pickle", Refusal.PICKLE)
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "pytorch_model.bin").write_bytes(b"")
    refused(tmp_path / "llm", "a pickle, .*expected model.safetensors, or its", Refusal.PICKLE)


def test_damaged_indices(unet, tmp_path):
    builders.save_folder(unet, tmp_path, shard_size="200KB")
    index = tmp_path / "unet" / f"{WEIGHTS}.index.json"
    shard = sorted((tmp_path / "unet").glob("*-of-*.safetensors"))[1]
    good = shard.read_bytes()
    shard.write_bytes(good[:-3])
    refused(shard, r"found \d+ bytes of \d+", Refusal.TRUNCATED)
    shard.unlink()
    with pytest.raises(BaseModelError, match=rf"1 of \d+ shards are missing, first {shard.name}"):
        load_base_model(tmp_path)
    index.write_text(json.dumps({"weight_map": 3}))
    with pytest.raises(BaseModelError, match="no readable weight_map; expected the index"):
        load_base_model(tmp_path)


# What people give for a base model: keys, what the message calls it and advises.
OTHERS = [
    (["model.diffusion_model.out.2.weight"], "a checkpoint in LDM naming .*; convert it"),
    (["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"], "an adapter .*; give the base"),
    (["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight"], "an adapter .*; give the base"),
    (["double_blocks.0.attn.weight"], "a diffusion transformer of no known family .*; give it in"),
    (["text_model.encoder.layers.0.mlp.fc1.weight"], "a text encoder or a VAE .*; give the UNet"),
    # As transformers has it since 5.
    (["embeddings.token_embedding.weight"], "a text encoder or a VAE .*; give the UNet"),
    (["a", "b"], "found 2 tensors, such as a, b"),
]


@pytest.mark.parametrize(("keys", "message"), OTHERS, ids=[keys[0] for keys, _ in OTHERS])
def test_other_files_are_called_by_their_name(tmp_path, keys, message):
    file = tmp_path / "other.safetensors"
    save_file({key: torch.ones(2, 2) for key in keys}, file)
    refused(file, message, Refusal.UNREADABLE_BASE)
    refused(file, "Expected a UNet in diffusers naming", Refusal.UNREADABLE_BASE)


def test_an_unsupported_dtype_is_refused_at_once(state, tmp_path):
    file = tmp_path / "eight.safetensors"
    key = "conv_in.weight"
    save_file(state | {key: state[key].to(torch.int8)}, file)
    message = "conv_in: found int8 numbers and nothing that says what they stand for; expected"
    refused(file, message, Refusal.UNSUPPORTED_DTYPE)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_eight_bit_floats(state, tmp_path, dtype):
    file = tmp_path / "eight.safetensors"
    eight = {key: tensor.to(dtype) for key, tensor in state.items()}
    save_file(eight, file)
    model = load_base_model(file)
    assert model.weight(LINEAR).dtype.name == str(dtype).removeprefix("torch.")
    expected = eight["add_embedding.linear_1.weight"].float().numpy()
    assert_array_equal(model.matrix(LINEAR), expected)
    assert len(model.fingerprint(LINEAR)) == 32
