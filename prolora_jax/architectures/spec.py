"""A base model as data: which modules it has, under which names, in which shapes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from prolora_jax.architectures.dit.spellings import FileLayer, LayerNames
from prolora_jax.architectures.dit.stacks import DIT_COMPONENTS
from prolora_jax.architectures.llm.facts import LmFacts
from prolora_jax.architectures.llm.layouts import is_embedding
from prolora_jax.architectures.llm.names import ALONE
from prolora_jax.architectures.naming import UNET, flat, flax_path
from prolora_jax.architectures.unet.spellings import ldm_paths

# By component; text encoders have none that is counted as such.
_ATTENTION: Mapping[str, tuple[str, ...]] = {
    "unet": (".attn1.", ".attn2."),
    "lm": (".self_attn.", ".attn.", ".attention."),
    **dict.fromkeys(DIT_COMPONENTS, ("attn.", "attn1.", "attn2.", "attention.")),
}


@dataclass(frozen=True)
class ModuleSpec:
    """One layer with a weight matrix or convolution kernel.

    Attributes:
        path: dotted path with component, `unet.mid_block.resnets.0.conv1`,
            `text_encoder.text_model.encoder.layers.0.mlp.fc1`, `lm.model.layers.0.mlp.up_proj` or
            `transformer.transformer_blocks.0.attn.to_q`.
        shape: shape of the torch weight, `(out, in)` or `(out, in, kh, kw)`.
    """

    path: str
    shape: tuple[int, ...]

    def kind_is(self, kind: str) -> bool:
        """Whether it belongs to `attn` (projections of attention), `linear` or `all`.

        An embedding belongs to none: its rows are copied, and span nothing.
        """
        if is_embedding(self.path):
            return False
        if kind == "all":
            return True
        names = _ATTENTION.get(self.path.partition(".")[0], ())
        attention = any(name in self.path for name in names)
        return len(self.shape) == 2 and (kind == "linear" or attention)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """`(out, in * kh * kw)`, the shape of the weight as a matrix (docs/method.md 1)."""
        out, *rest = self.shape
        width = 1
        for size in rest:
            width *= size
        return out, width


@dataclass(frozen=True)
class BaseModelSpec:
    """The modules of a base model, and every name that files have for them.

    Attributes:
        name: what to call it in messages and reports.
        modules: every module that an adapter could touch, by path; text encoders' too, where
            their weights are at hand.
        family: id of the published UNet (`published.CONFIGS`) or transformer (`published.DITS`)
            whose blocks these are, from `identified`; None for any other. Text encoders, header
            strings and the models whose adapters fit are those of the family.
        differences: in which places the model differs from its family's, in words; of a UNet where
            several families are equally near, which.
        text_encoders: which text encoders the model uses, `("clip-l", "openclip-bigg")`, whether
            or not their weights are at hand; () when nobody knows.
        facts: of a language model, what its configuration says and its tensors do not; the same
            modules are the same without it.
        packings: number of weights by packing, empty where none is packed; likewise.
        whole: layers of the authors' that are modules here, too, beside their parts, by path
            (`whole_layers`); None where a model is only what diffusers has.
    """

    name: str
    modules: Mapping[str, ModuleSpec] = field(repr=False)
    family: str | None = None
    differences: tuple[str, ...] = ()
    text_encoders: tuple[str, ...] = ()
    facts: LmFacts | None = field(default=None, compare=False)
    packings: Mapping[str, int] = field(default_factory=dict, compare=False)
    whole: Mapping[str, FileLayer] | None = field(default=None, repr=False, compare=False)

    @property
    def architecture(self) -> str | None:
        """Id of the published model that this is to the last layer; None for any other.

        Only for what depends on every number: a table of layers that somebody published.
        """
        return None if self.differences else self.family

    @property
    def is_sdxl_family(self) -> bool:
        """Whether it takes size and pooled-text embeddings, as SDXL and its children do.

        Kohya's trainer writes LDM block names for these and diffusers block names for SD 1 and 2.
        """
        return "unet.add_embedding.linear_1" in self.modules

    def component(self, component: str) -> tuple[str, ...]:
        """Paths of one component: `unet`, `transformer`, `text_encoder`, `lm`, ..."""
        return tuple(path for path in self.modules if path.startswith(f"{component}."))

    @cached_property
    def by_flat_name(self) -> Mapping[str, str]:
        """Path by flat kohya name without `lora_unet_`, for both block namings of the UNet."""
        return self.flat_names("unet") | {flat(name): path for path, name in self._ldm.items()}

    def flat_names(self, component: str) -> dict[str, str]:
        """Path by flat diffusers name of one component, without kohya's prefix for it.

        `text_model_encoder_layers_0_mlp_fc1` of `text_encoder` (`lora_te_`, `lora_te1_`) or
        `text_encoder_2` (`lora_te2_`).
        """
        prefix = f"{component}."
        return {flat(path.removeprefix(prefix)): path for path in self.component(component)}

    @cached_property
    def by_flax_name(self) -> Mapping[str, str]:
        """Path by place in a Flax tree, `unet/down_blocks_1/attentions_0/proj_in`."""
        return {flax_path(path): path for path in self.modules}

    def diffusers_flat(self, path: str) -> str:
        """`down_blocks_1_attentions_0_proj_in` for `unet.down_blocks.1.attentions.0.proj_in`."""
        return flat(path.removeprefix(UNET))

    def ldm_flat(self, path: str) -> str:
        """`input_blocks_4_1_proj_in` for `unet.down_blocks.1.attentions.0.proj_in`.

        Raises:
            KeyError: the module is not in this base model, or LDM has no name for it.
        """
        return flat(self._ldm[path])

    def ldm_name(self, path: str) -> str | None:
        """`input_blocks.4.1.proj_in` of a UNet's module; None where LDM has no name for it."""
        return self._ldm.get(path)

    @cached_property
    def layer_names(self) -> LayerNames:
        """Every name of the layers of its transformers; none of another kind of model."""
        modules = self.in_parts.modules.items()
        return LayerNames({path: module.shape for path, module in modules})

    @property
    def lm_level(self) -> str:
        """What stands before a language model's layers in transformers' own modules."""
        return ALONE if self.facts is None else self.facts.level

    @cached_property
    def in_parts(self) -> "BaseModelSpec":
        """The same model with no layer beside its parts."""
        if self.whole is None:
            return self
        known = {path: m for path, m in self.modules.items() if path not in self.whole}
        return replace(self, modules=known, whole=None)

    @cached_property
    def _ldm(self) -> Mapping[str, str]:
        return ldm_paths(self.component("unet"))
