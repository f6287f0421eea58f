"""What a folder of adapters is taken to hold: nothing is hidden, nothing opened, nothing eaten."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from prolora_jax.errors import AdapterRefused, Refusal, UsageError
from prolora_jax.io.adapters import files as files_module
from prolora_jax.io.adapters import inputs as inputs_module
from prolora_jax.io.adapters.files import load_adapter, refuse_existing
from prolora_jax.io.adapters.inputs import Input, expand
from prolora_jax.io.adapters.peft_folder import CONFIG, is_adapter_folder

PAIR = {
    "base_model.model.mid_block.proj_in.lora_A.weight": np.ones((2, 8), np.float32),
    "base_model.model.mid_block.proj_in.lora_B.weight": np.ones((8, 2), np.float32),
}
CONFIGURATION = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}


def adapter(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(PAIR, path)
    return path


def peft(folder: Path, config: str | None = None) -> Path:
    adapter(folder / "adapter_model.safetensors")
    (folder / CONFIG).write_text(json.dumps(CONFIGURATION) if config is None else config)
    return folder


def by_name(items: list[Input]) -> dict[str, Input]:
    return {item.relative.as_posix(): item for item in items}


def taken(items: list[Input]) -> set[str]:
    found = by_name(items).items()
    return {name for name, item in found if item.refusal is None and item.ignored is None}


def test_what_is_no_file_is_listed_and_the_others_go_on(tmp_path: Path):
    adapter(tmp_path / "good.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero.bin").symlink_to("/dev/zero")
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "gone.sft").symlink_to(tmp_path / "nothing")
    found = expand([tmp_path])
    assert taken(found) == {"good.safetensors"}
    told = {name: item.refusal for name, item in by_name(found).items() if item.refusal}
    assert {code for code, _ in told.values()} == {Refusal.MISSING_FILE}
    assert "found a pipe; expected an adapter file" in told["pipe.safetensors"][1]
    assert "found a device" in told["zero.bin"][1]
    assert "cannot be looked at" in told["loop.pt"][1]
    assert "cannot be looked at" in told["gone.sft"][1]
    with pytest.raises(UsageError, match="no such file or folder"):
        expand([tmp_path / "loop"])


def test_a_stray_configuration_hides_no_adapters(tmp_path: Path):
    for i in range(3):
        adapter(tmp_path / f"sub/n{i}.safetensors")
    (tmp_path / "sub" / CONFIG).write_text(json.dumps(CONFIGURATION))
    wanted = {f"n{i}.safetensors" for i in range(3)}
    assert taken(expand([tmp_path])) == {f"sub/{name}" for name in wanted}
    assert taken(expand([tmp_path / "sub"])) == wanted
    assert not is_adapter_folder(tmp_path / "sub")


def test_a_configuration_alone_is_an_adapter_that_lacks_its_weights(tmp_path: Path):
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / CONFIG).write_text(json.dumps(CONFIGURATION))
    assert taken(expand([tmp_path])) == {"lost"}
    with pytest.raises(AdapterRefused, match="found no weights"):
        load_adapter(tmp_path / "lost")


def test_adapters_inside_of_a_peft_folder_are_named(tmp_path: Path):
    peft(tmp_path / "run")
    peft(tmp_path / "run/checkpoint-500")
    adapter(tmp_path / "run/other.safetensors")
    (tmp_path / "run/optimizer.pt").write_bytes(b"x")
    found = by_name(expand([tmp_path]))
    assert taken([*found.values()]) == {"run"}
    for name in ("run/checkpoint-500", "run/other.safetensors"):
        refusal = found[name].refusal
        assert refusal is not None
        assert "found it inside of run, which is an adapter that peft wrote" in refusal[1]
    assert found["run/optimizer.pt"].ignored is not None


def test_a_training_runs_own_state_is_ignored(tmp_path: Path):
    adapter(tmp_path / "pytorch_lora_weights.safetensors")
    states = (
        *("optimizer.bin", "scheduler.bin", "optimizer.pt", "scheduler.pt", "scaler.pt"),
        *("rng_state.pth", "rng_state_3.pth", "random_states_0.pkl", "training_args.bin"),
        *("optimizer_1.bin", "mp_rank_00_model_states.pt", "zero_pp_rank_0_optim_states.pt"),
    )
    others = ("my_optimizer.bin", "optimizer.safetensors", "scheduler_style.pt")
    for name in (*states, *others):
        (tmp_path / name).write_bytes(b"x")
    found = by_name(expand([tmp_path]))
    assert taken([*found.values()]) == {"pytorch_lora_weights.safetensors", *others}
    for name in set(states) - {"random_states_0.pkl"}:  # no suffix of an adapter's
        assert "the state of a training run" in (found[name].ignored or ""), name


def test_outputs_of_an_earlier_run_are_no_inputs(tmp_path: Path):
    adapter(tmp_path / "a.safetensors")
    adapter(tmp_path / "out/a.safetensors")
    for name in ("manifest.sqlite", "pair.report.json"):
        (tmp_path / "out" / name).write_bytes(b"x")
    found = by_name(expand([tmp_path], leave_out=tmp_path / "new"))
    assert taken([*found.values()]) == {"a.safetensors"}
    assert "outputs of an earlier run" in str(found["out"].ignored)
    assert taken(expand([tmp_path / "out"])) == {"a.safetensors"}  # given itself, it is meant
    assert by_name(expand([tmp_path], leave_out=tmp_path / "out")).keys() == {"a.safetensors"}


def test_a_catalog_is_not_its_own_output(tmp_path: Path):
    adapter(tmp_path / "c/a.safetensors")
    (tmp_path / "link").symlink_to(tmp_path / "c")
    for out in (tmp_path / "c", tmp_path / "link"):
        with pytest.raises(UsageError, match="found the catalog itself; expected another folder"):
            expand([tmp_path / "c"], leave_out=out)


# --- configurations of peft's ---


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ("[" * 900 + "]" * 900, "found more than 100 levels"),
        ('{"r": ' * 100_000, "found more than 100 levels"),
        ("{", "found no JSON"),
        ("[]", "found no JSON object"),
        (" " * (2**21 + 1), "found 2097153 bytes; at most 2097152"),
    ],
)
def test_a_configuration_over_a_budget(config: str, found: str, tmp_path: Path):
    with pytest.raises(AdapterRefused, match=f"{CONFIG}: {found}.*expected peft's LoraConfig"):
        load_adapter(peft(tmp_path / "p", config))


@pytest.mark.parametrize(("pattern", "count"), [("mid.*{}.*", 51), ("mid_{}", 4001)])
def test_a_configuration_with_too_many_patterns(pattern: str, count: int, tmp_path: Path):
    patterns = {pattern.replace("{}", str(i)): 1 for i in range(count)}
    config = json.dumps(CONFIGURATION | {"alpha_pattern": patterns})
    with pytest.raises(AdapterRefused, match=f"{count} patterns, .* with repeats"):
        load_adapter(peft(tmp_path / "p", config))


def test_a_configuration_that_is_no_file(tmp_path: Path):
    folder = peft(tmp_path / "p")
    single = adapter(folder / "single.safetensors")
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)
    for path in (folder, single):
        with pytest.raises(AdapterRefused, match=f"{CONFIG}: found a pipe"):
            load_adapter(path)


def test_a_large_file_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "base.safetensors"
    save_file({"conv_in.weight": np.ones((4, 4, 3, 3), np.float32)}, file)

    def read(*_: object, **__: object) -> None:
        raise AssertionError("read whole")

    monkeypatch.setattr(files_module, "read_tensors", read)
    monkeypatch.setattr(files_module, "_LARGE", 100)
    with pytest.raises(AdapterRefused) as caught:
        load_adapter(file)
    assert caught.value.code is Refusal.UNKNOWN_KEYS


# --- where outputs may go ---


@pytest.mark.parametrize("how", ["itself", "symbolic", "hard", "folder"])
def test_an_output_never_replaces_what_it_is_made_from(how: str, tmp_path: Path):
    given = adapter(tmp_path / "c/a.safetensors")
    out = given if how in {"itself", "folder"} else tmp_path / "o.safetensors"
    if how == "symbolic":
        out.symlink_to(given)
    elif how == "hard":
        out.hardlink_to(given)
    read = (given.parent if how == "folder" else given, "some/model-on-the-hub")
    with pytest.raises(UsageError, match=r"would replace .*a\.safetensors.*with --overwrite"):
        refuse_existing(out, overwrite=True, read=read)
    refuse_existing(tmp_path / "new.safetensors", overwrite=True, read=read)


def test_a_folder_never_replaces_the_one_it_is_made_from(tmp_path: Path):
    given = peft(tmp_path / "p")
    with pytest.raises(UsageError, match="would replace"):
        refuse_existing(given, overwrite=True, folder=True, read=(given,))
    beside = adapter(tmp_path / "x/a.safetensors")
    refuse_existing(beside.parent, overwrite=True, folder=True, read=(beside,))


def test_a_name_too_long_for_its_report(tmp_path: Path):
    fits = tmp_path / ("l" * (255 - len(".safetensors.report.json")) + ".safetensors")
    refuse_existing(fits, overwrite=False)
    with pytest.raises(UsageError, match="report's name would have 256 bytes; expected at most"):
        refuse_existing(fits.with_name("l" + fits.name), overwrite=False)
    with pytest.raises(UsageError, match="report's name would have"):
        refuse_existing(tmp_path / ("é" * 120 + ".safetensors"), overwrite=False)


def test_a_folder_deeper_than_can_be_followed_is_one_entry_s_outcome(tmp_path: Path):
    adapter(tmp_path / "good.safetensors")
    place = tmp_path
    for _ in range(700):
        place = place / "d"
        place.mkdir()
    found = expand([tmp_path])
    assert taken(found) == {"good.safetensors"}
    (told,) = [item.refusal for item in found if item.refusal is not None]
    assert told[0] is Refusal.INTERNAL
    assert "cannot be looked at (RecursionError" in told[1]


@pytest.mark.parametrize("failure", [OSError(5, "broken disk"), KeyError("x")])
def test_a_failure_at_one_entry_is_that_entry_s_outcome(tmp_path: Path, monkeypatch, failure):
    for name in "abc":
        adapter(tmp_path / "catalog" / f"{name}.safetensors")
        (tmp_path / "catalog" / f"{name}dir").mkdir()
    real = inputs_module.is_adapter_folder

    def failing(path: Path) -> bool:
        if path.name == "bdir":
            raise failure
        return real(path)

    monkeypatch.setattr(inputs_module, "is_adapter_folder", failing)
    catalog = tmp_path / "catalog"
    for given in ([catalog], [catalog / "bdir", catalog]):
        found = expand(given)
        assert taken(found) == {f"{name}.safetensors" for name in "abc"}
        told = by_name(found)["bdir"].refusal
        assert told is not None
        assert "bdir: cannot be looked at (" in told[1]


def test_what_unfinished_refinements_keep_is_left_out(tmp_path: Path) -> None:
    for place in ("style", "out.refine-work/pair", "one.safetensors.refine-work/adapter-0"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.safetensors").touch()
    found = by_name(expand([tmp_path], leave_out=tmp_path / "out"))
    assert sorted(found) == ["one.safetensors.refine-work", "style/a.safetensors"]
    assert "unfinished refinement" in str(found["one.safetensors.refine-work"].ignored)
    assert found["style/a.safetensors"].ignored is None
