"""diffusers' own Flax pipelines with our UNet in place: bases that theirs cannot express run."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from prolora_jax.nets.pipelines.diffusers_flax import flax_class, theirs
from prolora_jax.nets.pipelines.pipeline import Pipeline
from prolora_jax.nets.unet.loading import Params
from prolora_jax.nets.unet.unet import Anywhere, UNet


class StockUNet:
    """Our UNet, called as `FlaxUNet2DConditionModel` is.

    Attributes:
        module: the net; adapters beside its kernels are used within `adapted`, as anywhere.
        config: what pipelines ask of it.
    """

    def __init__(self, module: UNet, sample_size: int):
        self.module = module
        in_channels = module.config.tensors.in_channels
        self.config = SimpleNamespace(in_channels=in_channels, sample_size=sample_size)

    def apply(
        self,
        variables: Mapping[str, Any],
        sample: Anywhere,
        timesteps: Anywhere,
        encoder_hidden_states: Anywhere,
        added_cond_kwargs: Mapping[str, Anywhere] | None = None,
    ) -> SimpleNamespace:
        """The prediction, as `sample` of the result."""
        found = self.module.apply(
            variables, sample, timesteps, encoder_hidden_states, added_cond_kwargs
        )
        return SimpleNamespace(sample=found)


def stock_pipeline(pipeline: Pipeline, params: Params) -> tuple[Any, Params]:
    """`FlaxStableDiffusionPipeline`, or `FlaxStableDiffusionXLPipeline`, of the same parts.

    Args:
        pipeline: of `load_pipeline`; its sampler is used, LCM too.
        params: its parameters.

    Returns:
        The pipeline, without a safety checker, and the parameters with the sampler's state among
        them, as that pipeline's `__call__` takes them.

    Raises:
        UsageError: diffusers is not there, or has no Flax.
    """
    unet = StockUNet(pipeline.unet, pipeline.sample_size)
    parts = {"vae": pipeline.vae, "unet": unet, "scheduler": pipeline.sampler}
    for name, encoder in pipeline.text_encoders.items():
        parts[name] = encoder
        parts[name.replace("text_encoder", "tokenizer")] = pipeline.tokenizers[name]
    if not pipeline.is_sdxl_family:
        parts |= {"safety_checker": None, "feature_extractor": None}
    kind = "XL" if pipeline.is_sdxl_family else ""
    stock = flax_class(f"FlaxStableDiffusion{kind}Pipeline")
    with theirs():
        made = stock(**parts, dtype=pipeline.unet.dtype)
    return made, {**params, "scheduler": pipeline.sampler.create_state()}
