"""docs/flax.md, and the pipelines and adapters that its examples find where they run."""

import re
from pathlib import Path

import builders
import tiny_pipelines
import torch
import unets

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "flax.md").read_text()


def examples(kind: str) -> list[str]:
    """Python code behind a comment that begins so: `test`, or `stock test`."""
    return re.findall(rf"<!-- {kind}:.*?-->\n```python\n(.*?)```", PAGE, re.DOTALL)


def write_files(place: Path) -> Path:
    """Pipelines and adapters under the names that the page uses."""
    source, target = (
        tiny_pipelines.make_pipeline(place / base, base, short=True) for base in ("sdxl", "ssd-1b")
    )
    trained = source.unet.state_dict()
    weights = target.unet.state_dict()
    with torch.no_grad():
        for key, weight in weights.items():  # a relative, so that something moves
            if key in trained and trained[key].shape == weight.shape:
                noise = 0.02 * trained[key].std() * torch.randn(weight.shape)
                weight.copy_(trained[key] + noise)
    target.save_pretrained(place / "ssd-1b")
    for name, base in (("style", "sdxl"), ("lcm", "sdxl"), ("lcm-lora-ssd-1b", "ssd-1b")):
        net = unets.torch_net(tiny_pipelines.SHORT[base])
        builders.add_lora(net)
        builders.save_by_diffusers(net, place).rename(place / f"{name}.safetensors")
    return place
