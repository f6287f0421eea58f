"""Hostile files: parsed, or refused with a code, in bounded time and memory; never a traceback."""

import json
import os
import pickle
import runpy
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from safetensors.numpy import save, save_file

from prolora_jax.cli.main import run
from prolora_jax.errors import AdapterRefused, BaseModelError, Refusal, UsageError
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.containers import pickles, tensors
from prolora_jax.io.containers import safetensors_header as header
from prolora_jax.io.containers.tensors import TensorFile

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
NAME = "lora_unet_mid_block_attentions_0_proj_in"
PAIR = {
    f"{NAME}.lora_down.weight": np.ones((2, 8), np.float32),
    f"{NAME}.lora_up.weight": np.ones((8, 2), np.float32),
}


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return runpy.run_path(str(SCRIPTS / "fuzz.py"))


def test_mutated_files_are_parsed_or_refused(fuzz, tmp_path):
    result = fuzz["run"](500, seed=4, folder=tmp_path, memory=False)
    assert result["failures"] == []
    assert result["failed"] == 0
    for name, counts in result["counts"].items():
        assert sum(counts.values()) == 500, name
        assert counts["parsed"] > 0, name
    assert len(result["counts"]["adapter"]) > 10


def test_every_file_to_mutate_is_valid(fuzz, tmp_path):
    file = tmp_path / "case.safetensors"
    for name, (arrays, metadata) in fuzz["SEEDS"].items():
        save_file(arrays, file, metadata or None)
        outcomes = {job: fuzz["outcome"](call, file) for job, call in fuzz["jobs"](file).items()}
        if name == "base":
            assert outcomes["base-model"] == "parsed"
        else:
            assert outcomes["adapter"] == outcomes["adapter-with-base"] == "parsed", name


# --- limits of headers ---


def with_text(file: Path, text: bytes, body: bytes = b"") -> Path:
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return file


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes


def refused(file: Path, code: Refusal, match: str) -> None:
    for load, kind in ((load_adapter, AdapterRefused), (load_base_model, BaseModelError)):
        with pytest.raises(kind, match=match) as caught:
            load(file)
        assert caught.value.code is code
        assert str(caught.value).startswith(f"{file}: ")
        assert str(caught.value).isprintable()


def test_a_long_header_is_not_read(tmp_path, monkeypatch):
    file = with_text(tmp_path / "long.safetensors", b"{}" + b" " * 100)
    assert TensorFile(file, error=AdapterRefused).keys == ()
    monkeypatch.setattr(header, "MAX_HEADER", 100)
    refused(file, Refusal.HEADER_TOO_LARGE, "found a header of 102 bytes; at most 100 are read")


def test_the_limit_of_headers_is_below_the_librarys(tmp_path):
    file = tmp_path / "huge.safetensors"
    with file.open("wb") as sparse:
        sparse.write((header.MAX_HEADER + 1).to_bytes(8, "little") + b"{")
        sparse.truncate(header.MAX_HEADER + 100)
    refused(file, Refusal.HEADER_TOO_LARGE, "found a header of 67108865 bytes; at most 67108864")


def test_a_claimed_length_is_compared_with_the_file_first(tmp_path):
    file = tmp_path / "claim.safetensors"
    for length, code in ((2**63, Refusal.NOT_SAFETENSORS), (2**20, Refusal.TRUNCATED)):
        file.write_bytes(length.to_bytes(8, "little") + b'{"a": ')
        refused(file, code, "too large" if code is Refusal.NOT_SAFETENSORS else "14 bytes of")


def test_too_many_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr(header, "MAX_TENSORS", 3)
    file = tmp_path / "many.safetensors"
    save_file({str(i): np.zeros(0) for i in range(3)}, file)
    assert len(TensorFile(file, error=AdapterRefused).keys) == 3
    save_file({str(i): np.zeros(0) for i in range(4)}, file)
    refused(file, Refusal.HEADER_TOO_LARGE, "found more than 3 tensors; shorten it")


def test_long_names(tmp_path):
    file = tmp_path / "name.safetensors"
    save_file({"a" * header.MAX_NAME: np.zeros(1)}, file)
    assert TensorFile(file, error=AdapterRefused).keys
    save_file({"a" * (header.MAX_NAME + 1): np.zeros(1)}, file)
    refused(file, Refusal.HEADER_TOO_LARGE, "a tensor name of 513 characters; at most 512")


@pytest.mark.parametrize("shape", [[1] * 9, [0, 2**40], [0, 2**63]], ids=str)
def test_shapes_that_no_array_has(tmp_path, shape):
    end = 4 if 0 not in shape else 0
    text = json.dumps({"a": entry(shape=shape, data_offsets=[0, end])}).encode()
    file = with_text(tmp_path / "axes.safetensors", text, bytes(end))
    refused(file, Refusal.HEADER_TOO_LARGE, r"tensor a with \d axes, the longest of \d+; at most 8")


TWICE = [
    ('{"a": %s, "a": %s}', "found a twice in the header"),
    ('{"a": {"shape": [1], "shape": [1], "dtype": "F32", "data_offsets": [0, 4]}}', "a field of a"),
    ('{"__metadata__": {}, "a": %s, "__metadata__": {}}', "found __metadata__ twice"),
    ('{"__metadata__": {"x": "1", "x": "2"}, "a": %s}', r"found __metadata__\.x twice"),
    (r'{"a": %s, "\u0061": %s}', "found a twice"),
]


@pytest.mark.parametrize(("text", "message"), TWICE, ids=[message for _, message in TWICE])
def test_equal_keys(tmp_path, text, message):
    filled = text.replace("%s", json.dumps(entry())).encode()
    file = with_text(tmp_path / "twice.safetensors", filled, bytes(4))
    refused(file, Refusal.DUPLICATE_KEY, f"{message}.*; remove one or fetch it again")


UNREADABLE = [
    {"a": entry(shape=[True])},
    {"a": entry(shape=[1.0])},
    {"a": entry(shape=[-1])},
    {"a": entry(data_offsets=[4, 0])},
    {"a": entry(data_offsets=[0, 4, 8])},
    {"a": entry(dtype=None)},
    {"a": entry(extra=1)},
    {"a": entry(extra={"b": []})},
    {"a": [1]},
    {"a\x1b[31m": entry()},
    {"a\n": entry()},
    {"__metadata__": {"a": 1}},
    {"__metadata__": []},
    {"a": entry(shape=[int("9" * 900)], dtype="F32" + "x" * 2000)},
]


@pytest.mark.parametrize("content", UNREADABLE, ids=range(len(UNREADABLE)))
def test_headers_that_describe_nothing(tmp_path, content):
    file = with_text(tmp_path / "odd.safetensors", json.dumps(content).encode(), bytes(4))
    refused(file, Refusal.NOT_SAFETENSORS, "found no readable header")


def test_deep_nesting_and_long_numbers(tmp_path):
    for value in ("[" * 200_000, "9" * 20_000, '{"a":' * 50_000, "1e999", "NaN"):
        file = with_text(tmp_path / "deep.safetensors", b'{"a": ' + value.encode() + b"}")
        refused(file, Refusal.NOT_SAFETENSORS, "found no readable header")


def test_a_file_that_is_too_long_is_not_read_whole(tmp_path):
    file, size = tmp_path / "sparse.safetensors", tensors.MAX_WHOLE_FILE
    step = 2**31
    spans = [[i * step, (i + 1) * step] for i in range(9)]
    parts = {str(s): entry(dtype="U8", shape=[step], data_offsets=s) for s in spans}
    text = json.dumps(parts).encode()
    with file.open("wb") as sparse:
        sparse.write(len(text).to_bytes(8, "little") + text)
        sparse.truncate(8 + len(text) + 9 * step)
    message = rf"found \d+ bytes; expected an adapter of at most {size}; give the adapter"
    with pytest.raises(AdapterRefused, match=message) as caught:
        load_adapter(file)
    assert caught.value.code is Refusal.FILE_TOO_LARGE


def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in (tmp_path / "pipe.safetensors", Path("/dev/zero")):
        with pytest.raises(UsageError, match="found a (pipe|device); .* name a file"):
            load_adapter(path)
    with pytest.raises(UsageError, match="cannot be looked at"):
        TensorFile(tmp_path / ("a" * 5000), error=AdapterRefused)


# --- packed weights ---

PACKED = ["weight.absmax", "weight.quant_map", "scale_weight", "weight_scale", "SCB", "qweight"]


@pytest.mark.parametrize("end", [*PACKED, "weight.quant_state.bitsandbytes__nf4"])
def test_packed_weights_are_refused(tmp_path, end):
    file = tmp_path / "packed.safetensors"
    save_file({"a.weight": np.ones(4, np.uint8), f"a.{end}": np.ones(1, np.float32)}, file)
    message = rf"found a\.{end}, which belongs to a weight packed .*; unpack the file"
    with pytest.raises(AdapterRefused, match=message) as caught:
        load_adapter(file)
    assert caught.value.code is Refusal.UNSUPPORTED_DTYPE
    with pytest.raises(BaseModelError):  # of base models some packings are read: not this one
        load_base_model(file)


def test_alphas_of_every_dtype(tmp_path):
    file = tmp_path / "alpha.safetensors"
    for dtype in (np.int64, np.int32, np.float64, np.float16):
        save_file(PAIR | {f"{NAME}.alpha": np.asarray(4, dtype)}, file)
        (module,) = load_adapter(file).modules
        assert module.alpha == 4.0


# --- pickles ---


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def torch_pair() -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(array) for key, array in PAIR.items()}


def test_pickles_are_refused_unless_allowed(tmp_path):
    message = r"which may run code when opened; convert it .* or allow it \(--allow-pickle\)"
    plain = tmp_path / "old.pt"
    plain.write_bytes(pickle.dumps({"a": 1}, protocol=0))
    archive = tmp_path / "new.pt"
    torch.save(torch_pair(), archive)
    for file in (plain, archive):
        with pytest.raises(AdapterRefused, match=message) as caught:
            load_adapter(file)
        assert caught.value.code is Refusal.PICKLE
    with pytest.raises(BaseModelError, match="may run code when opened") as base:
        load_base_model(archive)
    assert "--allow-pickle" not in str(base.value)


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.ckpt", "a.pth"])
def test_an_allowed_pickle_is_read(tmp_path, name):
    file = tmp_path / name
    wrapped = {"state_dict": torch_pair() | {f"{NAME}.alpha": torch.tensor(1)}, "epoch": 3}
    torch.save(wrapped, file, _use_new_zipfile_serialization=name.endswith("pt"))
    (module,) = load_adapter(file, allow_pickle=True).modules
    assert (module.rank, module.alpha) == (2, 1.0)
    assert_array_equal(module.down, np.ones((2, 8)))


def test_safetensors_are_read_whatever_they_are_called(tmp_path):
    (tmp_path / "a.pt").write_bytes(save(PAIR))
    assert len(load_adapter(tmp_path / "a.pt").modules) == 1
    assert len(load_adapter(tmp_path / "a.pt", allow_pickle=True).modules) == 1


ONE = torch.ones(2)
CONTENTS: list[tuple[Any, Refusal, str]] = [
    ([ONE, ONE], Refusal.NOT_AN_ADAPTER, "not-an-adapter:pickled-list: found no names"),
    ({"string_to_param": {"*": ONE}}, Refusal.NOT_AN_ADAPTER, "not-an-adapter:textual-inversion"),
    ({320: ONE}, Refusal.NOT_AN_ADAPTER, "pickled-object: found a Tensor under 320"),
    ({"a": "text"}, Refusal.NOT_AN_ADAPTER, "pickled-object: found a str under 'a'"),
    ({"a": ONE.to_sparse()}, Refusal.UNSUPPORTED_DTYPE, "found tensor 'a', sparse"),
    ({"a": torch.ones(1).expand(2**20, 2**20)}, Refusal.FILE_TOO_LARGE, "takes more memory than"),
]


@pytest.mark.parametrize(("content", "code", "message"), CONTENTS, ids=[c[2] for c in CONTENTS])
def test_other_pickles_are_refused_by_name(tmp_path, content, code, message):
    file = tmp_path / "a.pt"
    torch.save(content, file)
    with pytest.raises(AdapterRefused, match=message) as caught:
        load_adapter(file, allow_pickle=True)
    assert caught.value.code is code
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("archive", [True, False])
def test_the_payload_of_a_pickle_does_not_run(tmp_path, archive):
    file, mark = tmp_path / "evil.ckpt", tmp_path / "it-ran"
    torch.save({"a": Payload(mark)}, file, _use_new_zipfile_serialization=archive)
    for allowed in (False, True):
        with pytest.raises(AdapterRefused) as caught:
            load_adapter(file, allow_pickle=allowed)
        assert caught.value.code is Refusal.PICKLE
    assert "found a pickle that would call posix.system" in str(caught.value)
    assert not mark.exists()
    torch.load(file, weights_only=False)  # it would have
    assert mark.exists()


def fake_child(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> Path:
    child = folder / "child.py"
    child.write_text(code)
    monkeypatch.setattr(pickles, "CHILD", child)
    file = folder / "a.pt"
    torch.save(torch_pair(), file)
    return file


def test_a_pickle_that_takes_too_long(tmp_path, monkeypatch):
    file = fake_child(monkeypatch, tmp_path, "import time\ntime.sleep(60)")
    monkeypatch.setattr(pickles, "SECONDS", 0.2)
    with pytest.raises(AdapterRefused, match="took longer than 0 seconds to read; expected"):
        load_adapter(file, allow_pickle=True)


@pytest.mark.parametrize("answer", ["", "[]", '{"code": "x", "found": ""}', "[" * 9999, "\\x1b"])
def test_a_reader_that_fails(tmp_path, monkeypatch, answer):
    file = fake_child(monkeypatch, tmp_path, f"import sys\nprint({answer!r})\nsys.exit(3)")
    with pytest.raises(AdapterRefused, match=r"made its reader fail \(exit status 3\)") as caught:
        load_adapter(file, allow_pickle=True)
    assert caught.value.code is Refusal.PICKLE


def test_without_torch(tmp_path, monkeypatch):
    file = tmp_path / "a.pt"
    torch.save(torch_pair(), file)
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UsageError, match="needs torch, .*no torch here.*; pip install torch") as e:
        load_adapter(file, allow_pickle=True)
    assert e.value.code is Refusal.MISSING_LIBRARY


def test_the_present_folder_does_not_pass_for_torch(tmp_path, monkeypatch):
    torch.save(torch_pair(), tmp_path / "a.pt")
    (tmp_path / "torch.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    assert load_adapter("a.pt", allow_pickle=True).modules
    assert not (tmp_path / "ran").exists()


def test_the_command_line_allows_pickles(tmp_path, capsys):
    file = tmp_path / "a.pt"
    torch.save(torch_pair(), file)
    assert run(["inspect", str(file)]) == 1
    assert "--allow-pickle" in capsys.readouterr().err
    assert run(["inspect", str(file), "--allow-pickle", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["modules"] == 1


def test_torch_is_not_imported_here(tmp_path):
    torch.save(torch_pair(), tmp_path / "a.pt")
    code = (
        "import sys; from prolora_jax.io.adapters.files import load_adapter; "
        f"load_adapter({str(tmp_path / 'a.pt')!r}, allow_pickle=True); "
        "print('torch' in sys.modules)"
    )
    done = pickles.subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"False\n"


# --- configurations ---

PATTERNS = ["([a-z0-9_.]+)+!", ".*.*.*.*!", "(a|a)(a|a)(a|a)", "a" * 501, "(.)\\1"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_that_may_take_for_ever(tmp_path, pattern):
    config = json.dumps({"unet.lora_alpha": 4, "unet.alpha_pattern": {pattern: 1}})
    key = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    pair = {f"{key}.lora_A.weight": np.ones((2, 8)), f"{key}.lora_B.weight": np.ones((8, 2))}
    save_file(pair, tmp_path / "a.safetensors", {"lora_adapter_metadata": config})
    with pytest.raises(AdapterRefused, match="a pattern that may take for ever"):
        load_adapter(tmp_path / "a.safetensors")


def test_signalling_nans_are_refused_without_a_warning(tmp_path):
    up = np.full((8, 2), 0x7F81, np.uint16).view(ml_dtypes.bfloat16)
    down = PAIR[f"{NAME}.lora_down.weight"].astype(ml_dtypes.bfloat16)
    tensors.write_tensors(
        tmp_path / "a.safetensors", {f"{NAME}.lora_up.weight": up, f"{NAME}.lora_down.weight": down}
    )
    with pytest.raises(AdapterRefused, match="has 16 of 16 numbers that are NaN or infinite"):
        load_adapter(tmp_path / "a.safetensors")
