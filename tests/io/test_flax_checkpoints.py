"""One tiny net in every container: the same spec and the same weights, wherever it comes from."""

from pathlib import Path
from typing import Any

import builders
import checkpoints
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from numpy.testing import assert_array_equal
from stock_trees import UNETS, stock_tree

from prolora_jax.architectures.flax_trees import leaves
from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.containers.msgpack_tree import MsgpackTree

CONFIG = UNETS["unet-xl"]
FLAX = "diffusion_flax_model.msgpack"
CONV = "unet.up_blocks.0.resnets.0.conv1"
TREE = {"a": {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4)}, "b": {"bias": np.ones(2)}}


@pytest.fixture(scope="module")
def unet():
    return builders.build_unet(CONFIG)


@pytest.fixture(scope="module")
def params(unet) -> dict[str, Any]:
    """The net's Flax tree; tests/stock holds it against the one that diffusers makes."""
    tree = checkpoints.flax_unet(unet.state_dict())
    assert {place: leaf.shape for place, leaf in leaves(tree)} == stock_tree("unet-xl")
    return tree


def write_msgpack(file: Path, tree: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(flax.serialization.to_bytes(tree))
    return file


def write_orbax(folder: Path, tree: Any) -> Path:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, tree)
    return folder


def test_every_container_holds_the_same_model(unet, params, tmp_path):
    places = {
        "folder": builders.save_folder(unet, tmp_path / "folder" / "net"),
        "file": checkpoints.save_single_file(tmp_path / "net.safetensors", unet.state_dict()),
        "ldm": checkpoints.save_single_file(
            tmp_path / "ldm" / "net.safetensors", checkpoints.ldm_state(unet)
        ),
        "msgpack": write_msgpack(tmp_path / "net.msgpack", params),
        "flax folder": write_msgpack(tmp_path / "flax" / "net" / "unet" / FLAX, params).parent,
        "orbax": write_orbax(tmp_path / "orbax" / "net", params),
    }
    models = {name: load_base_model(place) for name, place in places.items()}
    first = models["folder"]
    assert len(first.spec.modules) > 100
    for name, model in models.items():
        assert model.spec == first.spec, name
        assert list(model.spec.modules) == list(first.spec.modules), name
        for path in first.spec.modules:
            assert_array_equal(model.matrix(path), first.matrix(path), err_msg=f"{name} {path}")
        for path in (CONV, "unet.add_embedding.linear_1", "unet.conv_in"):
            assert model.fingerprint(path) == first.fingerprint(path), name


def test_square_kernels_are_transposed(unet, params, tmp_path):
    path = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    weight = unet.state_dict()[f"{path}.weight"].numpy()
    assert weight.shape[0] == weight.shape[1]
    model = load_base_model(write_msgpack(tmp_path / "a.msgpack", params))
    assert_array_equal(model.weight(f"unet.{path}"), weight)
    assert not np.array_equal(weight, weight.T)


def test_dtypes_are_kept(params, tmp_path):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    for place in (write_msgpack(tmp_path / "a.msgpack", half), write_orbax(tmp_path / "b", half)):
        model = load_base_model(place)
        assert model.weight(CONV).dtype == jnp.bfloat16
        assert model.matrix(CONV).dtype == np.float32


def test_text_encoders_of_a_pipeline(unet, params, tmp_path):
    torch_encoder = checkpoints.text_encoder()
    second = checkpoints.text_encoder(layers=3, projected=True, seed=1)
    folder = builders.save_folder(unet, tmp_path / "torch" / "net")
    torch_encoder.save_pretrained(folder / "text_encoder")
    second.save_pretrained(folder / "text_encoder_2", max_shard_size="20KB")
    assert len(list((folder / "text_encoder_2").glob("*.safetensors"))) > 1
    want = load_base_model(folder)
    state = second.state_dict()
    for path in want.spec.component("text_encoder_2"):
        key = f"{path.removeprefix('text_encoder_2.')}.weight"
        assert_array_equal(want.weight(path), state[key].numpy())
    assert len(want.spec.component("text_encoder_2")) == 3 * 6 + 1

    flax_folder = tmp_path / "flax" / "net"
    write_msgpack(flax_folder / "unet" / FLAX, params)
    encoder = checkpoints.flax_text_encoder(torch_encoder)
    write_msgpack(flax_folder / "text_encoder" / "flax_model.msgpack", encoder)
    model = load_base_model(flax_folder)
    layers = want.spec.component("text_encoder")
    assert model.spec.component("text_encoder") == layers
    assert len(layers) == 2 * 6
    for path in layers:
        assert model.fingerprint(path) == want.fingerprint(path), path


def test_trees_of_components_and_training_states(unet, params, tmp_path):
    folder = load_base_model(builders.save_folder(unet, tmp_path / "net"))
    trees = [{"params": params, "step": 3}, {"unet": params}, {"params": {"unet": params}}]
    for i, tree in enumerate(trees):
        model = load_base_model(write_msgpack(tmp_path / f"{i}.msgpack", tree))
        assert model.spec.modules == folder.spec.modules
        assert_array_equal(model.weight(CONV), folder.weight(CONV))


def test_steps_of_an_orbax_manager(params, tmp_path):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (9, 10):
            tree = jax.tree.map(lambda x, step=step: np.full_like(x, step), params)
            manager.save(step, args=ocp.args.StandardSave(tree))
            manager.wait_until_finished()
    assert (load_base_model(tmp_path / "run").weight(CONV) == 10).all()
    assert (load_base_model(tmp_path / "run" / "9").weight(CONV) == 9).all()


def test_arrays_in_pieces(monkeypatch, tmp_path):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 20)
    tree = MsgpackTree(write_msgpack(tmp_path / "a.msgpack", TREE))
    assert len(tree.leaves["a", "kernel"].pieces) == 3
    assert_array_equal(tree.read(("a", "kernel")), TREE["a"]["kernel"])


def test_no_array_is_read_before_it_is_asked_for(tmp_path):
    file = write_msgpack(tmp_path / "a.msgpack", TREE)
    tree = MsgpackTree(file)
    content = file.read_bytes()
    ones = TREE["b"]["bias"].tobytes()
    with file.open("r+b") as opened:
        opened.seek(content.index(ones))
        opened.write(bytes(len(ones)))
    assert not tree.read(("b", "bias")).any()


# First bytes of a msgpack value that claims more than there is, or is something else.
DAMAGED = [
    (b"", "found an empty file", Refusal.TRUNCATED),
    (b"\xdf\xff\xff\xff\xff", "found 5 bytes of at least 6", Refusal.TRUNCATED),
    (b"\x81\xa1a\xc9\x7f\xff\xff\xff\x01", r"found 9 bytes of at least \d+", Refusal.TRUNCATED),
    (b"\x93\x01\x02\x03", "found no tree of named arrays", Refusal.UNREADABLE_BASE),
    (b"\x81" * 200, "found no tree of named arrays", Refusal.UNREADABLE_BASE),
    (b"\x80junk", "found no tree of named arrays", Refusal.UNREADABLE_BASE),
    (b"\x81\xa1a\xd4\x01\x07", "found an array without shape, dtype or", Refusal.UNREADABLE_BASE),
]


@pytest.mark.parametrize(("content", "match", "code"), DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_msgpack_files(tmp_path, content, match, code):
    file = tmp_path / "a.msgpack"
    file.write_bytes(content)
    with pytest.raises(BaseModelError, match=rf"a\.msgpack: {match}.*; fetch it again") as caught:
        load_base_model(file)
    assert caught.value.code is code


def test_arrays_that_contradict_themselves(tmp_path):
    content = write_msgpack(tmp_path / "good.msgpack", TREE).read_bytes()
    file = tmp_path / "bad.msgpack"
    file.write_bytes(content.replace(b"\x93\x92\x03\x04", b"\x93\x92\x03\x05"))
    with pytest.raises(BaseModelError, match=r"whose bytes are not those of shape \(3, 5\)"):
        MsgpackTree(file)
    file.write_bytes(content.replace(b"float32", b"object1"))
    with pytest.raises(BaseModelError, match="found an array of dtype object1"):
        MsgpackTree(file)
    file.write_bytes(content[:-1])
    with pytest.raises(BaseModelError, match=r"found \d+ bytes of at least"):
        MsgpackTree(file)


def test_integers_are_no_weights(params, tmp_path):
    whole = dict(params) | {"conv_in": {"kernel": np.ones((3, 3, 4, 16), np.int32)}}
    with pytest.raises(BaseModelError, match="conv_in/kernel has dtype int32; expected float16"):
        load_base_model(write_msgpack(tmp_path / "a.msgpack", whole))


def test_a_damaged_orbax_folder(params, tmp_path):
    folder = write_orbax(tmp_path / "net", params)
    (folder / "_METADATA").write_text("{")
    with pytest.raises(
        BaseModelError, match="its arrays cannot be read .*; expected a folder that"
    ):
        load_base_model(folder)
