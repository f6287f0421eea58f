"""Whether the heads that a language model's configuration says are those of its weights.

A configuration of another model may stand beside the weights, and its number of heads decides the
order of rows. Channels are heads times the size of one: where something says that size, it tells.
"""

from collections.abc import Mapping

from prolora_jax.architectures.llm.facts import LmFacts
from prolora_jax.architectures.llm.names import lm_name
from prolora_jax.architectures.spec import BaseModelSpec

# The axis of a layer's weight that has channels of heads, and whose heads they are.
_SIDES = {
    "self_attn.q_proj": (0, "heads"),
    "self_attn.k_proj": (0, "kv_heads"),
    "self_attn.v_proj": (0, "kv_heads"),
    "self_attn.o_proj": (1, "heads"),
}
_NORMS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
# OLMo 2 has a norm over all heads under the same name.
_NORMS_OF_HEADS = ("qwen3", "gemma3")


def with_norms(facts: LmFacts, shapes: Mapping[str, tuple[int, ...]]) -> LmFacts:
    """Facts with the sizes of a head that its norms have, where a family norms each head.

    Args:
        facts: from a configuration.
        shapes: of all tensors, by key.
    """
    if not facts.family.startswith(_NORMS_OF_HEADS):
        return facts
    sizes = dict(facts.head_sizes)
    for key, shape in shapes.items():
        name = lm_name(key)
        if name is not None and name.endswith(_NORMS) and len(shape) == 1:
            sizes[name.removesuffix(".weight").rpartition(".")[2]] = shape[0]
    return facts._replace(head_sizes=tuple(sizes.items()))


def unfit_base(spec: BaseModelSpec) -> str | None:
    """What is wrong with the number of heads that is said of a base model; None where nothing is.

    Args:
        spec: of any base model; of one that nothing is said of, nothing is wrong.
    """
    facts = spec.facts
    if facts is None or not facts.heads:
        return None
    for path in spec.component("lm"):
        axis, field = _SIDES.get(".".join(path.rsplit(".", 2)[-2:]), (0, ""))
        for what, size in facts.head_sizes if field else ():
            heads, channels = getattr(facts, field), spec.modules[path].shape[axis]
            if channels != heads * size:
                of = "queries" if field == "heads" else "keys and values"
                return (
                    f"found {heads} heads of {of} in the configuration of base model {spec.name}, "
                    f"each of {size} channels ({what}), and {channels} in {path}; expected "
                    f"{heads * size}; give the base model with its own configuration"
                )
    return None
