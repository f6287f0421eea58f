"""Published correspondences of pruned models, by the counts that their shapes must give."""

import pytest

from prolora_jax.architectures.identify import published_spec
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec
from prolora_jax.architectures.unet.correspondence import (
    CORRESPONDENCES,
    Correspondence,
    source_paths,
)

# (source, target): modules of the target, of equal shape under the map, under equal names.
COUNTS = {
    ("sd15", "bk-sdm-base"): (182, 182, 178),
    ("sd15", "bk-sdm-small"): (164, 164, 160),
    ("sd15", "bk-sdm-tiny"): (151, 151, 60),
    ("sdxl", "koala-700m"): (267, 267, 263),
}


@pytest.mark.parametrize("pair", COUNTS)
def test_every_layer_has_its_teachers_shape(pair):
    source, target = map(published_spec, pair)
    table = source_paths(source, target)
    assert table is not None
    by_name = [p for p, m in target.modules.items() if source.modules.get(p) == m]
    assert (len(target.modules), len(table), len(by_name)) == COUNTS[pair]
    assert len(set(table.values())) == len(table)


def test_koala_1b_is_mapped_in_full():
    table = source_paths(published_spec("sdxl"), published_spec("koala-1b"))
    assert table is not None
    assert table.keys() == published_spec("koala-1b").modules.keys()


# As the authors' training code copies them; the tiny net has lost its teacher's innermost blocks.
MOVES = [
    ("bk-sdm-base", "down_blocks.1.resnets.0.conv1", "down_blocks.1.resnets.0.conv1"),
    ("bk-sdm-base", "up_blocks.0.resnets.0.conv1", "up_blocks.0.resnets.0.conv1"),
    ("bk-sdm-base", "up_blocks.0.resnets.1.conv1", "up_blocks.0.resnets.2.conv1"),
    ("bk-sdm-base", "up_blocks.3.attentions.1.proj_in", "up_blocks.3.attentions.2.proj_in"),
    ("bk-sdm-base", "up_blocks.1.upsamplers.0.conv", "up_blocks.1.upsamplers.0.conv"),
    ("bk-sdm-base", "mid_block.resnets.1.conv1", "mid_block.resnets.1.conv1"),
    ("bk-sdm-tiny", "up_blocks.0.resnets.0.conv2", "up_blocks.1.resnets.0.conv2"),
    ("bk-sdm-tiny", "up_blocks.0.resnets.1.conv2", "up_blocks.1.resnets.2.conv2"),
    ("bk-sdm-tiny", "up_blocks.1.upsamplers.0.conv", "up_blocks.2.upsamplers.0.conv"),
    ("bk-sdm-tiny", "down_blocks.2.resnets.0.conv1", "down_blocks.2.resnets.0.conv1"),
]


@pytest.mark.parametrize(("target", "path", "source"), MOVES)
def test_moves_of_single_layers(target, path, source):
    known = CORRESPONDENCES["sd15", target]
    assert known.published
    assert known.source_path(f"unet.{path}") == f"unet.{source}"


def test_a_student_is_a_source_for_its_teacher():
    teacher, student = published_spec("sd15"), published_spec("bk-sdm-tiny")
    there, back = source_paths(teacher, student), source_paths(student, teacher)
    assert there is not None
    assert back == {source: target for target, source in there.items()}


def test_nothing_is_known_of_other_pairs():
    sd15, tiny = published_spec("sd15"), published_spec("bk-sdm-tiny")
    assert source_paths(published_spec("bk-sdm-base"), tiny) is None
    assert source_paths(published_spec("sdxl"), published_spec("ssd-1b")) is None
    assert source_paths(sd15, BaseModelSpec("toy", tiny.modules)) is None


def test_text_encoders_are_left_alone():
    path = "text_encoder.up_blocks.0.resnets.1.conv1"
    assert CORRESPONDENCES["sd15", "bk-sdm-base"].source_path(path) == path
    whole = published_spec("bk-sdm-tiny", text_encoders=True)
    table = source_paths(published_spec("sd15", text_encoders=True), whole)
    assert table is not None
    assert all(path.startswith("unet.") for path in table)


def test_a_table_of_ones_own():
    modules = {f"unet.a.{i}": ModuleSpec(f"unet.a.{i}", (2, 2)) for i in range(12)}
    source = BaseModelSpec("s", modules, family="s")
    target = BaseModelSpec("t", {"unet.a.1": modules["unet.a.1"]}, family="t")
    own = {("s", "t"): Correspondence({"a.1": "a.10"}, published=False)}
    assert source_paths(source, target, own) == {"unet.a.1": "unet.a.10"}
    # `a.1` is no prefix of `a.11`.
    assert own["s", "t"].source_path("unet.a.11") == "unet.a.11"
