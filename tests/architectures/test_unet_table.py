"""Generated tables against diffusers' own nets, and against fixed digests."""

import hashlib
from dataclasses import replace

import builders
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from unets import PUBLISHED

from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.architectures.unet.table import unet_table

# SHA-256 of the sorted lines "key<TAB>[shape]".
DIGESTS = {
    "sd15": "a8bce8cf1359c1f63f505d80a5f2a06669b2259b1a3c4c28b465c724a5bc9999",
    "sd21": "01ddc06f548dfc50e419cf121d85bba7e4527ba60d2bdbaf40bfad2241bba1be",
    "sdxl": "ef5813e6f39f5075a1338f2e30db9e0af73cb6730c913a4b46c8527429693781",
    "sdxl-refiner": "34478c48ba2307a02153dc88d153c16dd870c3eaed04283f681ae097453d03a0",
    "ssd-1b": "cb1e467a07b75804544587182df6031811c740780d78e0b9149cf7b22b02916c",
    "vega": "a85819627a6626f38a70c2b65cbd8682b6da579562d7844f9a4b08fea889c6d1",
    "koala-700m": "0bf240c3dc4c5129c67a9de13b19d1ac19fe0da608f48ef923a2396123e39e03",
    "koala-1b": "f9430381c66716991a8cf0eddfccfc58fbf54c95bec732baf7d2a5d1f860d77c",
    "bk-sdm-base": "b3341e937d67b7a40a67ed12c65cef7be38514f30ebf3cc836fd1e38b7fa1929",
    "bk-sdm-small": "b6f7068f9a705e901d903ca44e3e7cfd5bff972f649de7c860ef62ca1e5d9db4",
    "bk-sdm-tiny": "bf6696ecd3d260b7abdec92db6a08f2d3abbdba3b199e04d48b2255e01c539b1",
}
# Layers that an adapter can touch: linear ones and convolutions.
MODULES = {"sd15": 282, "sdxl": 794, "ssd-1b": 429, "vega": 239, "koala-700m": 267}


def shapes(unet: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in unet.state_dict().items()}


def test_every_published_net_is_here():
    assert set(CONFIGS) == set(PUBLISHED) == set(DIGESTS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_tables_equal_diffusers(name):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**PUBLISHED[name])
    assert unet_table(CONFIGS[name]) == shapes(unet)


@pytest.mark.parametrize("name", DIGESTS)
def test_tables_have_not_moved(name):
    lines = [f"{key}\t{list(shape)}" for key, shape in sorted(unet_table(CONFIGS[name]).items())]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == DIGESTS[name]


@pytest.mark.parametrize(
    ("config", "table"),
    [
        (builders.TINY_XL, builders.TINY_XL_TABLE),
        (builders.TINY_SSD, builders.TINY_SSD_TABLE),
        (builders.TINY_SD15, builders.TINY_SD15_TABLE),
    ],
    ids=["xl", "ssd", "sd15"],
)
def test_toy_tables_equal_diffusers(config, table):
    assert unet_table(table) == shapes(builders.build_unet(config))


@pytest.mark.parametrize("name", MODULES)
def test_specs_have_the_layers_that_an_adapter_can_touch(name):
    spec = spec_from_config(CONFIGS[name], name=name)
    assert len(spec.modules) == MODULES[name]
    assert all(len(module.shape) in {2, 4} for module in spec.modules.values())
    assert all(path == module.path for path, module in spec.modules.items())


def test_channels_of_an_inpainting_net():
    table = unet_table(replace(CONFIGS["sd15"], in_channels=9))
    assert table["conv_in.weight"] == (320, 9, 3, 3)
    assert table["conv_out.weight"] == (4, 320, 3, 3)
