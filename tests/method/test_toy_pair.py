"""The nets that many tests share: their planted blocks are found."""

from pathlib import Path

from toy_pair import make_files, planted_block

from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.migration.pair import BasePair


def test_planted_blocks_are_recovered_in_every_slot(tmp_path: Path):
    files = make_files(tmp_path)
    pair = BasePair(load_base_model(files.source), load_base_model(files.target))
    slots = [a for a in pair.matching().alignments if a.level == "blocks"]
    assert len(slots) == 10
    for slot in slots:
        assert all(planted_block(slot.slot, j) == i for i, j in slot.pairs)
