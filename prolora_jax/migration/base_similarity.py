"""How close two base models are, module by module, and what to expect."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from prolora_jax.architectures.identify import lookalikes
from prolora_jax.engines.progress import Progress
from prolora_jax.matching.alignment import Alignment
from prolora_jax.migration.opening import Place, open_pair
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import Measure
from prolora_jax.plans.relation import Relation, relation
from prolora_jax.subspaces.store import BasisStore


@dataclass(frozen=True)
class BaseSimilarity:
    """What was found of two base models.

    Attributes:
        source: where the source lies.
        target: where the target lies.
        names: of both.
        lookalikes: which published models have the shapes of either, in sentences, where it is a
            diffusion transformer.
        relation: what to expect.
        alignments: which stages and blocks belong together.
        compared: source by target path of the modules that were compared.
        measures: how close they are, by target path.
        alone: chosen modules of the target that the source has none for.
    """

    source: str
    target: str
    names: tuple[str, str]
    lookalikes: tuple[str, ...]
    relation: Relation
    alignments: tuple[Alignment, ...]
    compared: Mapping[str, str]
    measures: Mapping[str, Measure]
    alone: tuple[str, ...]


def similarity(
    source: Place,
    target: Place,
    modules: Literal["attn", "linear", "all"] = "attn",
    options: MigrationOptions | None = None,
    *,
    store: BasisStore | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> BaseSimilarity:
    """Compare two base models.

    Args:
        source: base model, or where it lies.
        target: base model to compare with it.
        modules: attn: attention layers; linear: all linear layers; all: convolutions, too.
        options: rank rule, matching and gate; default options when None.
        store: where subspaces are found and kept; memory when None.
        workers: processes for what has to be computed.
        progress: called with (what, done, total).

    Returns:
        Similarities by module, and what to expect of a migration.

    Raises:
        UsageError: one of them is not there.
        BaseModelError: one of them cannot be used.
    """
    options, pair = options or MigrationOptions(), open_pair(source, target, store, workers)
    specs = pair.source.spec, pair.target.spec
    matching = pair.matching(options.match, options)
    chosen = [p for p, m in pair.target.spec.modules.items() if m.kind_is(modules)]
    # Rows of these are no pairs by their places.
    elsewhere = pair.tokens.moving(matching.pairs) | pair.slices.among(matching.pairs)
    paired = {path: own for path, own in matching.pairs.items() if path not in elsewhere}
    compared = {path: paired[path] for path in chosen if path in paired}
    measures = pair.measure(compared, options, progress)
    return BaseSimilarity(
        pair.source.location,
        pair.target.location,
        (pair.source.spec.name, pair.target.spec.name),
        tuple(said for said in map(lookalikes, specs) if said is not None),
        relation(measures, len(chosen) - len(compared), options),
        matching.alignments,
        compared,
        measures,
        tuple(path for path in chosen if path not in compared),
    )
