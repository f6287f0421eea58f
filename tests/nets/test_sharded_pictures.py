"""Pictures and gradients over a mesh of 8 devices are those of one device, and the work is spread.

In a process of its own, as test_sharding.py says; compiling takes nearly all of its time.
"""

from pathlib import Path
from typing import Any

import pytest
import sharded_pictures
import tiny_pipelines
import unets
from eight_devices import found_by
from tiny_pipelines import PROMPTS

SCRIPT = Path(sharded_pictures.__file__)
ATOL = 1e-5  # of pictures from 0 to 1: float32 sums in another order
STEP = 2.0**-7  # between bfloat16's numbers at 1, the largest value of a picture
SHARE = 1e-5  # of a gradient's norm: float32 sums in another order


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sharded")
    tiny_pipelines.make_pipeline(folder / "pipeline", "ssd-1b", short=True)
    unets.save(unets.torch_net(unets.SMALLEST), folder / "unet")
    found = found_by(SCRIPT, str(folder / "pipeline"), str(folder / "unet"))
    assert found["devices"] == 8
    return found


@pytest.mark.parametrize(
    ("sampler", "mesh", "rows"), [("euler", {"data": 8}, 2), ("lcm", {"data": 4, "model": 2}, 1)]
)
def test_pictures_over_eight_devices(found, sampler, mesh, rows):
    drawn = found[sampler]
    assert drawn["mesh"] == mesh
    count = len(PROMPTS) * len(sharded_pictures.SEEDS)
    assert count % mesh["data"]  # the last batch is filled up
    assert drawn["error"] <= ATOL
    assert found["without adapter"] > 0.05
    assert not drawn["copied"]  # parameters that are on the mesh already
    # Each device has a picture of its own, with two rows where there is guidance, and no step
    # needs another device.
    assert drawn["over"] == ["data"]
    assert drawn["unet_rows"] == [rows]
    assert drawn["in_loop"] == []
    assert drawn["outside"] == []  # nor do the text encoders and the VAE


def test_bfloat16_but_for_vae_and_latents(found):
    half = found["bfloat16"]
    parts = {"unet", "text_encoder", "text_encoder_2"}
    assert half["parameters"] == {part: ["bfloat16"] for part in parts} | {"vae": ["float32"]}
    assert half["nets"] == ["bfloat16"] * 3
    assert half["latents"] == ["float32"]
    # On average; the adapter moves pictures by more than ten times that.
    assert 0 < half["distance"] <= STEP
    assert half["distance"] < found["without adapter"] / 10


def test_gradients_by_factors_with_remat_over_eight_devices(found):
    single, half = (found["gradients"][dtype] for dtype in ("float32", "bfloat16"))
    assert single["error"] <= SHARE
    # Another order rounds otherwise, but no worse.
    assert half["error"] <= half["rounding"] < 0.05
    for one in (single, half):
        assert one["least"] > 0
        assert one["collectives"] == ["all-reduce"]
    memory = found["gradients"]["bytes"]
    assert memory["again"] < memory["kept"] / 2


def test_parameters_stay_split(found):
    kept = found["kept"]
    assert kept["same"]
    assert kept["specs"] == {"split": [None, "model"], "one": [], "host": []}
    assert set(kept["devices"].values()) == {8}
