"""GGUF files as base models; the oracles are gguf's own unpacking and transformers' reading."""

import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from numpy.testing import assert_array_equal
from safetensors.torch import save_file

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model
from prolora_jax.io.base_models.gguf_model import open_gguf

Type = gguf.GGMLQuantizationType
HEADS, KV_HEADS, WIDTH = 4, 2, 256
Q, K = "lm.model.layers.0.self_attn.q_proj", "lm.model.layers.0.self_attn.k_proj"
DOWN = "lm.model.layers.0.mlp.down_proj"
SHAPES = {
    "token_embd.weight": (48, WIDTH),
    "output_norm.weight": (WIDTH,),
    "blk.0.attn_norm.weight": (WIDTH,),
    "blk.0.ffn_norm.weight": (WIDTH,),
    "blk.0.attn_q.weight": (WIDTH, WIDTH),
    "blk.0.attn_k.weight": (WIDTH // 2, WIDTH),
    "blk.0.attn_v.weight": (WIDTH // 2, WIDTH),
    "blk.0.attn_output.weight": (WIDTH, WIDTH),
    "blk.0.ffn_gate.weight": (512, WIDTH),
    "blk.0.ffn_up.weight": (512, WIDTH),
    "blk.0.ffn_down.weight": (WIDTH, 512),
}
NORMS = tuple(name for name in SHAPES if "norm" in name)
UNPACKED = [kind for kind in Type if kind in gguf.quants._type_traits and kind != Type.BF16]


def numbers(name: str) -> np.ndarray:
    seed = sum(name.encode())
    return 0.05 * np.random.default_rng(seed).standard_normal(SHAPES[name], np.float32)


def packed(shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Bytes of a tensor of any type: of those that the package does not pack, whatever comes."""
    block, width = gguf.GGML_QUANT_SIZES[kind]
    size = (*shape[:-1], shape[-1] // block * width)
    return np.random.default_rng(7).integers(0, 256, size, np.uint8)


def write(
    file: Path,
    tensors: Mapping[str, tuple[np.ndarray, gguf.GGMLQuantizationType | None]],
    architecture: str = "llama",
    **more: int,
) -> Path:
    """A model as gguf writes it."""
    writer = gguf.GGUFWriter(file, architecture)
    for name, value in {
        "context_length": 64,
        "embedding_length": WIDTH,
        "block_count": 1,
        "feed_forward_length": 512,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "vocab_size": 48,
    }.items():
        writer.add_uint32(f"{architecture}.{name}", value)
    for name, value in more.items():
        writer.add_uint32(name.replace("__", "."), value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32(f"{architecture}.rope.freq_base", 10000.0)
    writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(48)])
    writer.add_array("tokenizer.ggml.scores", [0.5] * 5000)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def llama(kind: gguf.GGMLQuantizationType = Type.F32) -> dict:
    """Tensors of a Llama, linear layers of one type."""
    found = {}
    for name in SHAPES:
        if name in NORMS:
            found[name] = numbers(name), Type.F32
        else:
            found[name] = gguf.quants.quantize(numbers(name), kind), kind
    return found


def parts(model: BaseModel, path: str, step: int) -> np.ndarray:
    return np.concatenate([*model.numbers(path, step)]).astype(np.float32)


def read_by_transformers(file: Path) -> dict[str, torch.Tensor]:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    return {
        f"lm.{name.removesuffix('.weight')}": tensor
        for name, tensor in model.state_dict().items()
        if tensor.ndim == 2
    }


@pytest.mark.parametrize("kind", [Type.F32, Type.Q8_0, Type.Q4_1])
def test_a_llama_as_transformers_reads_it(tmp_path: Path, kind: gguf.GGMLQuantizationType):
    """Rows of q and k are put back into transformers' order; the embedding is the head, too."""
    file = write(tmp_path / "llama.gguf", llama(kind))
    model = load_base_model(file)
    want = read_by_transformers(file)
    assert {*model.spec.modules} == {*want}
    for path, module in model.spec.modules.items():
        assert module.shape == tuple(want[path].shape)
        assert_array_equal(model.matrix(path), want[path].numpy())
        assert_array_equal(parts(model, path, 1000), want[path].numpy().reshape(-1))
        assert model.is_streamed(path)
    stored = gguf.quants.dequantize(*llama(kind)["blk.0.attn_q.weight"]).reshape(WIDTH, WIDTH)
    assert not np.array_equal(stored, model.matrix(Q))
    assert model.spec.name == "llama"


@pytest.mark.parametrize("kind", UNPACKED, ids=lambda kind: kind.name)
def test_every_type_that_gguf_unpacks(tmp_path: Path, kind: gguf.GGMLQuantizationType):
    raw = packed(SHAPES["blk.0.ffn_down.weight"], kind)
    file = write(tmp_path / "a.gguf", llama() | {"blk.0.ffn_down.weight": (raw, kind)})
    model = load_base_model(file)
    with np.errstate(all="ignore"):
        want = gguf.quants.dequantize(raw, kind).reshape(WIDTH, 512)
        assert_array_equal(model.matrix(DOWN), want)
        assert_array_equal(parts(model, DOWN, 777), want.reshape(-1))
    assert model.spec.modules[DOWN].shape == (WIDTH, 512)
    assert model.packings == {f"GGUF {kind.name}": 1}


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_floats_are_those_of_safetensors(tmp_path: Path, name: str):
    """The same floats have the same fingerprints, whatever container and order they are in."""
    kind = {"float32": Type.F32, "float16": Type.F16, "bfloat16": Type.BF16}[name]
    model = load_base_model(write(tmp_path / "a.gguf", llama(kind)))
    assert model.packings == {}
    tensors = {
        f"{path.removeprefix('lm.')}.weight": torch.from_numpy(model.matrix(path)).to(
            getattr(torch, name)
        )
        for path in model.spec.modules
    }
    save_file(tensors, tmp_path / "a.safetensors")
    twin = load_base_model(tmp_path / "a.safetensors")
    assert replace(model.spec, facts=twin.spec.facts) == twin.spec  # of a config alone
    for path in (Q, DOWN):
        assert model.weight(path).dtype == np.dtype(getattr(ml_dtypes, name, name))
        assert_array_equal(model.weight(path), twin.weight(path))
        assert model.fingerprint(path) == twin.fingerprint(path)


def test_fingerprints_of_blocks(tmp_path: Path):
    """They are of the blocks and of the order of the rows, never of the floats."""
    models = [
        load_base_model(write(tmp_path / f"{name}.gguf", llama(Type.Q8_0), name))
        for name in ("llama", "qwen2")
    ]
    assert models[0].fingerprint(DOWN) == models[1].fingerprint(DOWN)
    assert models[0].fingerprint(Q) != models[1].fingerprint(Q)
    floats = {f"{Q.removeprefix('lm.')}.weight": torch.from_numpy(models[0].weight(Q))}
    save_file(floats, tmp_path / "floats.safetensors")
    assert load_base_model(tmp_path / "floats.safetensors").fingerprint(Q) != (
        models[0].fingerprint(Q)
    )


def test_biases_have_their_rows_in_the_same_order(tmp_path: Path):
    """A weight whose rows all hold their bias."""
    bias = np.arange(WIDTH // 2, dtype=np.float32)
    rows = np.repeat(bias[:, None], WIDTH, axis=1)
    changed = {"blk.0.attn_k.weight": (rows, None), "blk.0.attn_k.bias": (bias, None)}
    model = load_base_model(write(tmp_path / "a.gguf", llama() | changed))
    found = model.bias(K)
    assert found is not None
    assert_array_equal(found, model.matrix(K)[:, 0])
    size = WIDTH // HEADS
    assert found[:3].tolist() == [0, 2, 4]
    assert found[size // 2 : size // 2 + 2].tolist() == [1, 3]
    assert model.bias(DOWN) is None


def gpt2() -> tuple[dict[str, torch.Tensor], dict]:
    """A GPT-2 of transformers, and its tensors as converters write them: `(out, in)`."""
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=40, n_positions=16)
    torch.manual_seed(0)
    state = transformers.GPT2LMHeadModel(config).state_dict()
    names = {
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    }
    found = {"token_embd.weight": (state["transformer.wte.weight"].numpy(), None)}
    found["position_embd.weight"] = (state["transformer.wpe.weight"].numpy(), None)
    for name, short in names.items():
        weight = state[f"transformer.h.0.{name}.weight"].numpy().T
        found[f"blk.0.{short}.weight"] = (np.ascontiguousarray(weight), None)
        found[f"blk.0.{short}.bias"] = (state[f"transformer.h.0.{name}.bias"].numpy(), None)
    return state, found


def test_gpt2(tmp_path: Path):
    state, tensors = gpt2()
    model = load_base_model(write(tmp_path / "gpt2.gguf", tensors, "gpt2"))
    plain = {key: t.clone() for key, t in state.items() if key != "lm_head.weight"}
    save_file(plain, tmp_path / "gpt2.safetensors")
    twin = load_base_model(tmp_path / "gpt2.safetensors")
    assert replace(model.spec, facts=twin.spec.facts) == twin.spec  # of a config alone
    for path in twin.spec.modules:
        assert_array_equal(model.matrix(path), twin.matrix(path))
        assert model.fingerprint(path) == twin.fingerprint(path)
        assert_array_equal(parts(model, path, 100), twin.matrix(path).reshape(-1))


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("phi3", {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}),
        ("qwen3", {"attn_q": "self_attn.q_proj", "ffn_up": "mlp.up_proj"}),
        ("gemma3", {"attn_v": "self_attn.v_proj", "ffn_gate": "mlp.gate_proj"}),
    ],
)
def test_other_architectures_keep_their_rows(
    tmp_path: Path, architecture: str, names: dict[str, str]
):
    rows = np.arange(96, dtype=np.float32)[:, None] * np.ones((1, 32), np.float32)
    tensors = {f"blk.3.{short}.weight": (rows, None) for short in names}
    tensors["blk.3.attn_q.weight"] = (rows, None)
    model = load_base_model(write(tmp_path / "a.gguf", tensors, architecture))
    for name in names.values():
        assert_array_equal(model.matrix(f"lm.model.layers.3.{name}"), rows)


def test_a_folder_with_one_file(tmp_path: Path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    file = write(folder / "tiny.gguf", llama())
    assert load_base_model(folder).fingerprint(Q) == load_base_model(file).fingerprint(Q)
    renamed = file.rename(folder / "tiny.bin")
    assert load_base_model(renamed).spec.modules
    renamed.rename(file)
    write(folder / "more.gguf", llama())
    with pytest.raises(BaseModelError, match=r"found 2 GGUF files; .* name one of them, more"):
        load_base_model(folder)


def test_the_header_is_that_of_gguf(tmp_path: Path):
    """Places and shapes as gguf's own reader has them."""
    file = write(tmp_path / "a.gguf", llama(Type.Q5_1))
    reader = gguf.GGUFReader(file)
    view = open_gguf(file)
    kept = {tensor.name: tensor for tensor in reader.tensors if tensor.name not in NORMS}
    assert len(view.keys) == len(kept)
    for key in view.keys:
        (part,) = view.weight(key).parts.values()
        want = kept[part.key]
        assert view.shape(key) == tuple(reversed(want.shape.tolist()))
        assert_array_equal(part.read(), np.asarray(want.data).view(np.uint8).reshape(-1))


def bad_files(tmp_path: Path) -> dict[str, tuple[Path, str, Refusal]]:
    whole = write(tmp_path / "whole.gguf", llama()).read_bytes()

    def file(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    doubled = whole.replace(b"blk.0.ffn_gate.weight", b"blk.0.attn_q.weight\x00\x00")
    names = {"a.gguf": llama() | {"blk.0.attn_q.weight": (np.ones((6, 256), np.float32), None)}}
    return {
        "cut off": (
            file("cut.gguf", whole[:-64]),
            r"found \d+ bytes of at least \d+; expected a whole GGUF file; fetch it again",
            Refusal.TRUNCATED,
        ),
        "a header that is cut off": (
            file("head.gguf", whole[:200]),
            r"found 200 bytes of more \(expected a GGUF file\); fetch it again",
            Refusal.TRUNCATED,
        ),
        "another version": (
            file("v1.gguf", whole[:4] + struct.pack("<I", 1) + whole[8:]),
            r"found version 1, or another order of bytes",
            Refusal.UNREADABLE_BASE,
        ),
        "a count of anything": (
            file("many.gguf", whole[:8] + struct.pack("<Q", 2**60) + whole[16:]),
            r"found a count of \d+; at most 100000 are read",
            Refusal.UNREADABLE_BASE,
        ),
        "a name that cannot be printed": (
            file("names.gguf", doubled),
            r"found a name that is too long, or cannot be printed",
            Refusal.UNREADABLE_BASE,
        ),
        "an unknown architecture": (
            write(tmp_path / "bert.gguf", llama(), "bert"),
            r"found general.architecture 'bert'; expected one of llama, .*; give the model as saf",
            Refusal.UNREADABLE_BASE,
        ),
        "a part": (
            write(tmp_path / "part.gguf", llama(), split__count=3),
            r"found one of 3 parts of a model; .* \(llama-gguf-split --merge\)",
            Refusal.UNREADABLE_BASE,
        ),
        "rows that are no heads": (
            write(tmp_path / "rows.gguf", names["a.gguf"]),
            r"blk.0.attn_q.weight: found 6 rows of 4 heads; expected an even number of rows",
            Refusal.SHAPE_MISMATCH,
        ),
        "heads of another model": (
            write(tmp_path / "heads.gguf", llama(), llama__attention__key_length=32),
            r"attn_q.weight: found 256 rows of 4 heads, each of 32 \(key_length\); expected 128",
            Refusal.SHAPE_MISMATCH,
        ),
        "a type that is not unpacked": (
            write(
                tmp_path / "q8k.gguf",
                llama() | {"blk.0.ffn_down.weight": (packed((256, 512), Type.Q8_K), Type.Q8_K)},
            ),
            r"blk.0.ffn_down.weight: found type Q8_K; expected one that the gguf package unpacks",
            Refusal.UNSUPPORTED_DTYPE,
        ),
    }


def test_what_is_not_whole_is_refused(tmp_path: Path):
    for what, (file, message, code) in bad_files(tmp_path).items():
        with pytest.raises(BaseModelError, match=message) as caught:
            load_base_model(file)
        assert caught.value.code is code, what


def test_without_the_package(tmp_path: Path):
    """The extra is named; a process of its own has the import fail."""
    file = write(tmp_path / "a.gguf", llama())
    program = (
        "import sys; sys.modules['gguf'] = None\n"
        "from prolora_jax.io.base_models.checkpoint import load_base_model\n"
        "from prolora_jax.errors import BaseModelError\n"
        "try: load_base_model(sys.argv[1])\n"
        "except BaseModelError as error: print(error.code, error)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=True
    )
    assert "missing-library GGUF files are read with the gguf package" in found.stdout
    assert "pip install 'prolora_jax[gguf]'" in found.stdout
