"""What judging reads: weights from a folder or the hub, pictures; what it keeps: embeddings."""

from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from safetensors.numpy import save_file

from prolora_jax.errors import BaseModelError, UsageError
from prolora_jax.io.judging import pictures
from prolora_jax.io.judging.kept import KeptEmbeddings
from prolora_jax.io.judging.pictures import ReadPicture, Rejected, picture_files, read_picture
from prolora_jax.io.judging.weights import (
    PublishedWeights,
    config_beside,
    find_weights,
    read_weights,
)

CLIP = PublishedWeights("clip", "some-org/clip", "tower.safetensors")
TENSORS = {"a.x": np.ones((2, 3), np.float32), "b.x": np.zeros(4, np.float16)}


@pytest.mark.parametrize(
    "name", ["clip.safetensors", "clip/model.safetensors", "clip/tower.safetensors"]
)
def test_weights_are_found_under_three_names(tmp_path, name):
    place = tmp_path / name
    place.parent.mkdir(exist_ok=True)
    save_file(TENSORS, place)
    assert find_weights(CLIP, tmp_path) == place
    found = read_weights(place, lambda key: key.startswith("a."))
    assert {*found} == {"a.x"}
    assert_array_equal(found["a.x"], TENSORS["a.x"])


def test_the_hub_is_asked_for_one_file(tmp_path, monkeypatch):
    asked = []

    def fetch(hub_id: str, file: str) -> str:
        asked.append((hub_id, file))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert find_weights(CLIP, None) == tmp_path / "tower.safetensors"
    assert asked == [("some-org/clip", "tower.safetensors")]

    def offline(hub_id: str, file: str) -> str:
        raise OSError(f"no way to {hub_id}. More words")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    message = r"clip: tower.safetensors of some-org/clip could not be fetched \(OSError: no way to"
    with pytest.raises(UsageError, match=message):
        find_weights(CLIP, None)


def test_pickles_are_never_opened(tmp_path):
    (tmp_path / "clip.bin").write_bytes(b"PK")
    with pytest.raises(UsageError, match="found clip.bin, a pickle, which may run code when open"):
        find_weights(CLIP, tmp_path)


def test_a_configuration_that_is_none(tmp_path):
    weights = tmp_path / "model.safetensors"
    assert config_beside(weights) is None
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert config_beside(weights) == {"model_type": "clip"}
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(BaseModelError, match=r"config.json: found no JSON object; expected trans"):
        config_beside(weights)


def test_only_pictures_of_a_folder_in_order(tmp_path):
    for name in ("b.PNG", "a.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in picture_files(tmp_path)] == ["a.jpg", "b.PNG"]


def test_pictures_are_known_by_their_bytes(tmp_path):
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    for name in ("a.png", "b.png"):
        picture.save(tmp_path / name)
    one, other = (read_picture(tmp_path / name) for name in ("a.png", "b.png"))
    assert isinstance(one, ReadPicture)
    assert isinstance(other, ReadPicture)
    assert one.digest == other.digest
    assert_array_equal(np.asarray(one.picture), np.asarray(picture))


def refused(path: Path) -> str:
    found = read_picture(path)
    assert isinstance(found, Rejected)
    assert found.path == path
    return found.reason


def test_pictures_that_cannot_be_had(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=np.uint8)).save(
        path
    )
    whole = path.read_bytes()
    monkeypatch.setattr(pictures, "_MOST_PIXELS", 1000)
    assert refused(path) == "found 40 x 40 pixels; too many"
    monkeypatch.undo()
    path.write_bytes(whole[:900])
    assert refused(path).startswith("cannot be read as a picture (")
    assert "FileNotFoundError" in refused(tmp_path / "none.png")
    (tmp_path / "folder.png").mkdir()
    assert "found a folder; expected a regular file" in refused(tmp_path / "folder.png")


def test_embeddings_are_kept_by_encoder_and_picture(tmp_path):
    row = np.arange(3, dtype=np.float32)
    kept = KeptEmbeddings(tmp_path, "encoder", 3)
    assert kept.read("ab12") is None
    kept.write("ab12", row)
    found = kept.read("ab12")
    assert found is not None
    assert_array_equal(found, row)
    assert KeptEmbeddings(tmp_path, "other", 3).read("ab12") is None
    # Of another width, with what is no number, or of another dtype: as good as not there.
    assert KeptEmbeddings(tmp_path, "encoder", 4).read("ab12") is None
    kept.write("ab12", row * np.float32(np.nan))
    assert kept.read("ab12") is None
    kept.write("ab12", row.astype(np.float64))
    assert kept.read("ab12") is None
