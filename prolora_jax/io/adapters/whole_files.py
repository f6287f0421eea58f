"""Adapter files as wholes: converted, inspected, compared; no device."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from prolora_jax.adapters.adapter import Adapter, AlphaZero
from prolora_jax.adapters.algorithms.companions import without_copies
from prolora_jax.adapters.algorithms.cutting import FactorRank
from prolora_jax.adapters.algorithms.factoring import factored
from prolora_jax.adapters.comparison import NO_BASE, AdapterComparison, WeightsOf, compare
from prolora_jax.adapters.fitting import hold
from prolora_jax.adapters.formats.dumping import Reader, concrete_format
from prolora_jax.adapters.formats.folding import in_own_dtype
from prolora_jax.adapters.formats.header_strings import as_plain_lora
from prolora_jax.adapters.formats.published import published_base, told_apart
from prolora_jax.adapters.formats.regrouping import row_order
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.adapters.formats.saved_layers import as_layers
from prolora_jax.adapters.formats.trees import unscaled
from prolora_jax.adapters.inspection import (
    Inspection,
    inspect_adapter,
    inspect_base,
    language_model,
)
from prolora_jax.architectures.identify import ARCHITECTURES, published_spec
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import AdapterRefused, ProloraError, Refusal, UsageError
from prolora_jax.io.adapters.files import load_adapter, save_adapter
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model
from prolora_jax.io.outputs.reports import read_report, report_path
from prolora_jax.plans.companions import require_no_whole_layers

LORA = "lora"
"""What `convert_file` takes for a format: LoRA factors, in the format that the file has."""
_SIDES = "source", "target"
# Why a base model is no adapter: its keys, packed weights, or that its folder is none of peft's.
_PERHAPS_A_BASE = (
    *(Refusal.NOT_AN_ADAPTER, Refusal.MISSING_FILE),
    *(Refusal.UNSUPPORTED_DTYPE, Refusal.UNKNOWN_KEYS),
)


class ConvertedFile(NamedTuple):
    """An adapter file in another format.

    Attributes:
        output: what was written.
        adapter: what is in it, with dotted paths and the format it had.
        format: that it has now.
        names: of which base model's names they are.
    """

    output: Path
    adapter: Adapter
    format: str
    names: str


class ComparedFiles(NamedTuple):
    """Two adapter files side by side.

    Attributes:
        comparison: module by module.
        is_flat: whether their names do not say where a block ends.
    """

    comparison: AdapterComparison
    is_flat: bool


def convert_file(
    path: str | Path,
    to: str,
    out: str | Path,
    base: str | Path | None = None,
    *,
    alpha_zero: AlphaZero = "refuse",
    allow_pickle: bool = False,
    allow_partial: bool = False,
    strip_metadata: bool = False,
    overwrite: bool = False,
    factor_rank: FactorRank | None = None,
    reader: Reader | None = None,
) -> ConvertedFile:
    """Write an adapter in another format; the update stays the same number.

    Args:
        path: adapter file or PEFT folder.
        to: format to write; `lora` for LoRA factors of an adapter of another algorithm, in the
            same format.
        out: file to write; a folder for peft, unless it ends in .safetensors.
        base: base model it is for, or the id of a published one, whose names are known without its
            files; not needed for published ones whose names leave no doubt.
        alpha_zero: what an alpha of 0 in the input means.
        allow_pickle: whether a pickle may be read.
        allow_partial: whether whole layers beside the pairs (peft's modules_to_save) may be left
            out.
        strip_metadata: whether all header strings but `prolora` and `format` are left out.
        overwrite: whether an existing output may be replaced.
        factor_rank: for `to="lora"`, of the factors that are made; the default if None.
        reader: the program that the output is for, where it reads less than peft: a folder.

    Returns:
        What was written.

    Raises:
        UsageError: the output exists, or an input is not there.
        AdapterRefused: the adapter cannot be used, or does not fit the format.
        OutputError: the output cannot be written.
    """
    published = str(base) in ARCHITECTURES and not Path(str(base)).exists()
    model = None if base is None or published else load_base_model(base)
    taken = to == LORA
    adapter = load_adapter(path, alpha_zero=alpha_zero, allow_pickle=allow_pickle, structured=taken)
    to = "same" if taken else to
    if model is not None:
        spec = model.spec
    else:
        spec = published_spec(str(base)) if published else published_base(adapter, to)
    adapter = resolve(adapter, spec)
    if model is not None:
        adapter = without_copies(adapter, model.matrix, model.bias)
    if taken:
        matrix, bias = (None, None) if model is None else (model.matrix, model.bias)
        made = factored(adapter, spec, matrix, factor_rank or FactorRank(), bias=bias)
        metadata = as_plain_lora(made.metadata) if adapter.structured else made.metadata
        adapter = replace(made, modules=tuple(map(in_own_dtype, made.modules)), metadata=metadata)
    adapter = replace(adapter, companions=as_layers(adapter.companions))
    require_no_whole_layers(adapter, allow_partial=allow_partial)
    format = "peft" if reader is not None and to == "same" else concrete_format(to, adapter, spec)
    save_adapter(
        adapter,
        out,
        format=format,
        base=spec,
        strip_metadata=strip_metadata,
        overwrite=overwrite,
        read=(path,) if base is None or published else (path, base),
        reader=reader,
    )
    return ConvertedFile(Path(out), adapter, format, spec.name)


def inspect_file(
    path: str | Path,
    base: str | Path | BaseModelSpec | None = None,
    assume_base: str | None = None,
    *,
    alpha_zero: AlphaZero = "refuse",
    allow_pickle: bool = False,
) -> Inspection:
    """What an adapter file is.

    Args:
        path: adapter file or PEFT folder.
        base: base model it was trained on, its spec or where it lies; then every module is
            checked against it, as a migration does.
        assume_base: id of the base model to believe in, whatever the file says.
        alpha_zero: what an alpha of 0 means.
        allow_pickle: whether a pickle may be read.

    Returns:
        Format, ranks, modules, evidence about its base model, or of a language model's base that
        itself; of a base model what that is.

    Raises:
        UsageError: there is no such file.
        AdapterRefused: the file cannot be used, or belongs to another base model.
    """
    if isinstance(base, (str, Path)):
        base = load_base_model(base).spec
    try:
        adapter = load_adapter(
            path, alpha_zero=alpha_zero, allow_pickle=allow_pickle, structured=True
        )
    except (AdapterRefused, UsageError) as error:
        found = _base_model(Path(path)) if error.code in _PERHAPS_A_BASE else None
        if found is None:
            raise
        return found
    if base is None:
        return inspect_adapter(told_apart(adapter), str(path))
    held = inspect_adapter(hold(adapter, base, assume_base).adapter, str(path))
    return replace(held, base_model=language_model(base))


def _base_model(path: Path) -> Inspection | None:
    """What is known of a base model; None where there is none, or one that is not read."""
    if not path.exists():
        return None  # and nothing is fetched by that name
    try:
        model = load_base_model(path)
    except ProloraError:
        return None
    if model.spec.component("unet") and "unet.conv_out" not in model.spec.modules:
        return None  # a ControlNet has the first half of a UNet
    naming = "original" if model.has_original_names else "diffusers"
    return inspect_base(model.spec, str(path), naming)


def compare_files(a: str | Path, b: str | Path, base: str | Path | None = None) -> ComparedFiles:
    """Two adapters module by module: what each adds to the weights, whatever its algorithm.

    When B was migrated from A (its report says so), each module is compared with the one that it
    came from.

    Args:
        a: first adapter.
        b: second adapter.
        base: base model of both; needed when they use different key conventions, and where an
            update depends on its weights (DoRA, OFT, IA3, GLoRA).

    Returns:
        The comparison.

    Raises:
        UsageError: the two have no module in common, or a file is not there, or the order of one's
            rows needs a base model that is not given.
        AdapterRefused: one of them cannot be used, or needs a base model that is not given.
    """
    a, b = Path(a), Path(b)
    models: tuple[BaseModel | None, BaseModel | None] = None, None
    origins = None
    if base is not None:
        known = load_base_model(base)
        models = known, known
    elif report_path(b).is_file():
        report = read_report(b)
        if a.resolve() == Path(report["input"]["location"]):
            origins = {row["path"]: row["source_path"] for row in report["modules"]}
            source, target = (load_base_model(report[side]["location"]) for side in _SIDES)
            models = source, target
    first, second = (load_adapter(path, structured=True) for path in (a, b))
    bases = tuple(NO_BASE if m is None else WeightsOf(m.spec, m.matrix) for m in models)
    if models == (None, None) and (first.structured or second.structured):
        # The shapes of their tensors are checked against layers, and published names tell these.
        spec = published_base(first if first.structured else second, "same")
        bases = WeightsOf(spec), WeightsOf(spec)
    if NO_BASE in bases:
        _require_one_order(first, second)
    if NO_BASE not in bases:
        first, second = resolve(first, bases[0].spec), resolve(second, bases[1].spec)
    found = compare(first, second, origins, (bases[0], bases[1]))
    if not found.modules:
        raise UsageError(
            f"{a} ({first.format}) and {b} ({second.format}) have no module in common; expected "
            "two adapters of one base model. Name it with --base when their keys differ.",
            code=Refusal.NO_MATCHING_MODULE,
        )
    return ComparedFiles(found, first.is_flat)


def _require_one_order(a: Adapter, b: Adapter) -> None:
    """Refuse to compare rows of which only a base model says where they belong."""
    orders = row_order(a), row_order(b)
    # Both are of one model's heads: no norm or product depends on an order that both have.
    if orders[0] == orders[1] and not unscaled(a):
        return
    whose = orders[0] or orders[1]
    raise UsageError(
        f"{a.origin} and {b.origin}: found rows in {whose}'s order in q and k, and no base model; "
        f"expected the one that says how many heads there are; name it with --base",
        code=Refusal.BAD_OPTION,
    )
