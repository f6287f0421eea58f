"""diffusers' own Flax pipelines with our nets in place: bases that theirs cannot express run."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np

from prolora_jax.nets.pipelines.diffusers_flax import flax_class, theirs
from prolora_jax.nets.pipelines.pipeline import Pipeline
from prolora_jax.nets.text.clip import ClipTextEncoder
from prolora_jax.nets.text.tokens import ClipTokenizer
from prolora_jax.nets.unet.loading import Params
from prolora_jax.nets.unet.unet import Anywhere, UNet
from prolora_jax.nets.vae.vae import Vae


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


class StockText(dict[str, Any]):
    """What a text encoder says, found by name or by place, as in a result of transformers."""

    def __getitem__(self, key: str | int) -> Any:
        """An entry, of a name or at a place."""
        return [*self.values()][key] if isinstance(key, int) else super().__getitem__(key)


class StockTextEncoder:
    """Our text encoder, called as `FlaxCLIPTextModel` is.

    Attributes:
        module: the net.
    """

    def __init__(self, module: ClipTextEncoder):
        self.module = module

    def __call__(
        self, input_ids: Anywhere, params: Params, output_hidden_states: bool = False
    ) -> StockText:
        """What the encoder says: the last layer first, then the summary."""
        said: Any = self.module.apply({"params": params}, jnp.asarray(input_ids))
        summary = "text_embeds" if self.module.projected else "pooler_output"
        found = StockText({"last_hidden_state": said.last, summary: said.pooled})
        return StockText(found, hidden_states=said.hidden) if output_hidden_states else found


class StockTokenizer:
    """Our tokenizer, called as `CLIPTokenizer` is.

    Attributes:
        tokenizer: gives the numbers.
        model_max_length: of a prompt.
    """

    def __init__(self, tokenizer: ClipTokenizer):
        self.tokenizer, self.model_max_length = tokenizer, tokenizer.length

    def __call__(
        self, text: str | Sequence[str], max_length: int | None = None, **_: Any
    ) -> SimpleNamespace:
        """The numbers, as `input_ids` of the result; always filled up and cut off, in NumPy."""
        texts = [text] if isinstance(text, str) else text
        rows = [self.tokenizer.framed(self.tokenizer.ids(one), max_length) for one in texts]
        return SimpleNamespace(input_ids=np.array(rows, np.int32))


class StockVae:
    """Our VAE, called as `FlaxAutoencoderKL` is, to decode.

    Attributes:
        module: the net.
        config: what pipelines ask of it.
        decode: what they call it for.
    """

    def __init__(self, module: Vae):
        self.module, self.decode = module, module.decode
        self.config = SimpleNamespace(
            block_out_channels=module.config.block_out_channels,
            scaling_factor=module.config.scaling_factor,
        )

    def apply(
        self, variables: Mapping[str, Any], latents: Anywhere, *, method: Any
    ) -> SimpleNamespace:
        """The pictures, as `sample` of the result."""
        return SimpleNamespace(sample=self.module.apply(variables, latents, method=method))


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
    parts: dict[str, Any] = {
        "vae": StockVae(pipeline.vae),
        "unet": unet,
        "scheduler": pipeline.sampler,
    }
    for name, encoder in pipeline.text_encoders.items():
        parts[name] = StockTextEncoder(encoder)
        tokenizer = StockTokenizer(pipeline.tokenizers[name])
        parts[name.replace("text_encoder", "tokenizer")] = tokenizer
    if not pipeline.is_sdxl_family:
        parts |= {"safety_checker": None, "feature_extractor": None}
    kind = "XL" if pipeline.is_sdxl_family else ""
    stock = flax_class(f"FlaxStableDiffusion{kind}Pipeline")
    with theirs():
        made = stock(**parts, dtype=pipeline.unet.dtype)
    return made, {**params, "scheduler": pipeline.sampler.create_state()}
