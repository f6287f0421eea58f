"""Adapters of parameters that hold a layer of all experts: peft's `target_parameters`.

Keys carry no parameter's name. With two of them adapted in a layer, `experts.base_layer` is the
first one, `gate_up_proj`, and `experts` the other. `A` is `(experts * rank, in)`, the expert
slowest; `B` is `(out, rank * experts)`, the expert fastest. peft before 0.19 took every parameter
for `(in, out)`, and had `A` for the rows and `B` for the columns of others; later ones take it for
`(out, in)` unless the model says otherwise. Llama 4's are `(in, out)`, and it says nothing; so are
gpt-oss's, and newer transformers say it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats.lora_config import alpha_by_config, settings_of
from prolora_jax.adapters.formats.segments import (
    common_dtype,
    cut,
    gathered_rows,
    joined,
    one_after_another,
    placed_rows,
    scaled_alike,
)
from prolora_jax.architectures.llm.fused import (
    PARAMETERS,
    expert_of,
    expert_path,
    in_memory,
    is_llama4,
    is_turned,
    on_disk,
    row_orders,
)
from prolora_jax.architectures.llm.names import LM
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import AdapterRefused, Refusal

_EXPERTS, _INNER = ".experts", ".experts.base_layer"
FIELD = "target_parameters"
_ROUTER = ".gate"


class ParameterTensors(NamedTuple):
    """The pair of a parameter, as peft stores it.

    Attributes:
        path: of the parameter, `lm.model.layers.0.mlp.experts.gate_up_proj`.
        name: of its pair in a file, `lm.model.layers.0.mlp.experts.base_layer`.
        rank: of each expert's pair.
        alpha: of the configuration.
        a: `(experts * rank, in)`.
        b: `(out, rank * experts)`.
    """

    path: str
    name: str
    rank: int
    alpha: float
    a: np.ndarray
    b: np.ndarray


class UndecidedParameter(AdapterRefused):
    """Raised for a pair of all experts that can be read in several ways."""

    def __init__(self, adapter: Adapter, module: LoraModule, found: str):
        super().__init__(
            f"{adapter.origin}: {module.path}: found {found}, and nothing that says which of "
            f"several ways to read it is right; expected {FIELD} and peft_version in "
            f"adapter_config.json; add what peft wrote it, or save it with peft 0.19 or later",
            code=Refusal.INCOMPLETE_PAIR,
        )


def is_parameter(module: LoraModule) -> bool:
    """Whether a module of a file is a parameter with a layer of all experts, by its name."""
    return module.path.endswith((_EXPERTS, _INNER))


def experts_in(spec: BaseModelSpec) -> dict[str, int]:
    """Number of experts by the block that holds them."""
    found: dict[str, int] = {}
    for path in spec.modules:
        expert = expert_of(path)
        if expert is not None:
            found[expert.block] = max(found.get(expert.block, 0), expert.number + 1)
    return found


def experts_apart(
    adapter: Adapter, module: LoraModule, spec: BaseModelSpec, counts: Mapping[str, int]
) -> list[LoraModule]:
    """A pair for each expert and layer, of the pair of a parameter.

    Args:
        adapter: that the module is of.
        module: as its key says; `is_parameter`.
        spec: the base model, which has the experts one by one.
        counts: `experts_in` the base model.

    Returns:
        The pairs, views of the file's tensors; none where the base model has no such experts.

    Raises:
        UndecidedParameter: the file does not say which parameter it is of, or which of its two
            factors is which.
    """
    block = module.path.removesuffix(_INNER).removesuffix(_EXPERTS)
    block = block if block in counts else on_disk(block)
    count = counts.get(block)
    if count is None or module.rank % count:
        return []
    layers = _layers(block, spec)
    if layers is None:
        return []
    rank, (width, height) = module.rank // count, (module.down.shape[1], module.up.shape[0])
    names = _named(adapter, module, layers, {(width, height), (height, width)})
    if len(names) != 1:
        raise UndecidedParameter(
            adapter, module, f"pairs of {' or '.join(names) or 'no parameter'}"
        )
    name = names[0]
    rows, inner = [layers[part][0] for part in PARAMETERS[name]], layers[PARAMETERS[name][0]][1]
    out = sum(rows)
    a = module.down.reshape(count, rank, width)
    b = module.up.reshape(height, rank, count)
    exchanged = (width, height) == (out, inner)
    if exchanged and out == inner:
        exchanged = _is_exchanged(adapter, module, block, layers, spec)
    path = f"{in_memory(block)}.experts.{name}"
    alpha = alpha_by_config(path, rank, adapter.metadata, adapter.origin)
    orders = row_orders(block, name, rows, spec.modules)
    found = []
    for number in range(count):
        down, up = (b[:, :, number].T, a[number].T) if exchanged else (a[number], b[:, :, number])
        whole = LoraModule(path, down, up, alpha)
        whole = gathered_rows(whole, orders)
        for part, segments in zip(PARAMETERS[name], one_after_another(rows), strict=True):
            found.append(cut(whole, expert_path(block, number, part), segments))
    return found


def parameters_of(
    adapter: Adapter, spec: BaseModelSpec, fields: Mapping[str, Any]
) -> tuple[Adapter, tuple[ParameterTensors, ...], tuple[str, ...]]:
    """An adapter's experts put together, parameter by parameter, as its input had them.

    Args:
        adapter: resolved, plain.
        spec: the base model.
        fields: of the configuration: which parameters, and whose version of peft reads it.

    Returns:
        The adapter without what was put together; the pairs of parameters; and paths of routers,
        which peft adapts as parameters, too.
    """
    said = _said(fields)
    wanted = {name for name in PARAMETERS if any(one.endswith(name) for one in said)}
    by_place: dict[tuple[str, str], dict[tuple[int, str], LoraModule]] = {}
    part_of = {part: name for name in wanted for part in PARAMETERS[name]}
    shapes: dict[str, dict[str, tuple[int, int]]] = {}
    rest = []
    for module in adapter.modules:
        expert = expert_of(module.path)
        whole = None if expert is None else _layers(expert.block, spec)
        if expert is None or whole is None or expert.part not in part_of:
            rest.append(module)
            continue
        shapes[expert.block] = whole
        group = by_place.setdefault((expert.block, part_of[expert.part]), {})
        group[expert.number, expert.part] = module
    counts, old = experts_in(spec), _is_old(str(fields.get("peft_version", "")))
    found = tuple(
        _together(
            *(block, name, group, counts[block], shapes[block]),
            *(all((block, other) in by_place for other in PARAMETERS), old, adapter.origin, spec),
        )
        for (block, name), group in by_place.items()
    )
    routers: tuple[str, ...] = ()
    if any(one.endswith(f"{_ROUTER}.weight") for one in said):
        blocks = tuple(f"{block}{_ROUTER}" for block in counts)
        routers = tuple(in_memory(m.path) for m in rest if m.path in blocks)
        rest = [replace(m, path=in_memory(m.path)) if m.path in blocks else m for m in rest]
    return replace(adapter, modules=tuple(rest)), found, routers


def _together(
    block: str,
    name: str,
    group: Mapping[tuple[int, str], LoraModule],
    count: int,
    layers: Mapping[str, tuple[int, int]],
    both: bool,  # noqa: FBT001 (all of them are given)
    old: bool,  # noqa: FBT001
    origin: str,
    spec: BaseModelSpec,
) -> ParameterTensors:
    if is_turned(block, spec.modules):
        old = is_llama4(block) and not old
    orders = row_orders(block, name, [layers[part][0] for part in PARAMETERS[name]], spec.modules)
    rows = [layers[part][0] for part in PARAMETERS[name]]
    whole = f"{in_memory(block)}.experts"
    experts: dict[int, LoraModule] = {}
    for number in range(count):
        parts = [group.get((number, part)) for part in PARAMETERS[name]]
        if any(part is not None for part in parts):
            together = joined(whole, parts, one_after_another(rows), origin)
            experts[number] = placed_rows(together, orders)
    if len({expert.scale for expert in experts.values()}) > 1:
        experts = dict(zip(experts, scaled_alike([*experts.values()], origin), strict=True))
    rank = max(expert.rank for expert in experts.values())
    one = next(iter(experts.values()))
    dtypes = [common_dtype([getattr(e, n) for e in experts.values()]) for n in ("down", "up")]
    a = np.zeros((count, rank, one.down.shape[1]), dtypes[0])
    b = np.zeros((one.up.shape[0], rank, count), dtypes[1])
    for number, expert in experts.items():
        a[number, : expert.rank] = expert.down
        b[:, : expert.rank, number] = expert.up
    if old:
        a, b = b.transpose(2, 1, 0), a.transpose(2, 1, 0)
    flat = a.reshape(count * rank, -1), b.reshape(-1, rank * count)
    inner = name == "gate_up_proj" and both
    place = whole.removesuffix(_EXPERTS) + (_INNER if inner else _EXPERTS)
    return ParameterTensors(f"{whole}.{name}", place, rank, one.scale * rank, *flat)


def _layers(block: str, spec: BaseModelSpec) -> dict[str, tuple[int, int]] | None:
    """Shape of each layer of an expert, by its name in dense models; None where one is missing."""
    found = {}
    for part in (part for parts in PARAMETERS.values() for part in parts):
        layer = spec.modules.get(expert_path(block, 0, part))
        if layer is None:
            return None
        found[part] = (layer.shape[0], layer.shape[1])
    return found


def _said(fields: Mapping[str, Any]) -> list[str]:
    """Names of the parameters that a configuration has."""
    said = fields.get(FIELD)
    return [str(name) for name in said] if isinstance(said, list | tuple) else []


def _named(
    adapter: Adapter,
    module: LoraModule,
    layers: Mapping[str, tuple[int, int]],
    shapes: set[tuple[int, int]],
) -> Sequence[str]:
    """Parameters that a pair may be of."""
    outer = module.path.removesuffix(_INNER).removesuffix(_EXPERTS)
    paths = {other.path for other in adapter.modules}
    if module.path.endswith(_INNER):
        return ["gate_up_proj"]
    if outer + _INNER in paths:
        return ["down_proj"]
    said = _said(settings_of(module.path, adapter.metadata, adapter.origin))
    place = f"{in_memory(outer).removeprefix(LM)}.experts"
    named = [
        name for name in PARAMETERS if any(f".{place}.{name}".endswith(f".{one}") for one in said)
    ]
    return [name for name in named or PARAMETERS if _shape(name, layers) in shapes]


def _shape(name: str, layers: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    parts = PARAMETERS[name]
    return layers[parts[0]][1], sum(layers[part][0] for part in parts)


def _is_exchanged(
    adapter: Adapter,
    module: LoraModule,
    block: str,
    layers: Mapping[str, tuple[int, int]],
    spec: BaseModelSpec,
) -> bool:
    """Which way round a parameter of as many rows as columns has its factors."""
    old = _is_old(_version(adapter, module))
    if not is_turned(block, spec.modules):
        return old
    if old or is_llama4(block):
        return not old
    # What gpt-oss says depends on transformers, whose version no file has; the other parameter may.
    outer = module.path.removesuffix(_INNER).removesuffix(_EXPERTS)
    first = next((one for one in adapter.modules if one.path == outer + _INNER), module)
    width, height = _shape("gate_up_proj", layers)
    if width == height or {first.down.shape[1], first.up.shape[0]} != {width, height}:
        raise UndecidedParameter(adapter, module, "a parameter with as many rows as columns")
    return first.down.shape[1] != width


def _version(adapter: Adapter, module: LoraModule) -> str:
    said = settings_of(module.path, adapter.metadata, adapter.origin).get("peft_version")
    if not isinstance(said, str) or not re.match(r"\d+\.\d+", said):
        raise UndecidedParameter(adapter, module, "a parameter with as many rows as columns")
    return said


def _is_old(version: str) -> bool:
    """Whether this peft has the two factors exchanged."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) < (0, 19)
