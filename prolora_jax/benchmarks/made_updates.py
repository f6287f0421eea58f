"""One module of a made pair and the updates of many adapters on it, for whoever is measured.

Spans are random, orthonormal, and those of source and target have nothing to do with each other:
no product gets cheaper or dearer by what is in it. Factors are float16 arrays of their own, as
files have them; the baselines get float32, already cast and stacked.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prolora_jax.adapters.adapter import LoraModule
from prolora_jax.benchmarks import baselines
from prolora_jax.benchmarks.baselines import PaperLayer, Spans, ThinLayer, WideLayers
from prolora_jax.benchmarks.bases import orthonormal
from prolora_jax.method.encoding import rank_class
from prolora_jax.method.operators import ModuleOperators, Span, prepare_side
from prolora_jax.method.projection import apply_side, rows_of
from prolora_jax.migration.blocks import split_rows, stacked
from prolora_jax.migration.execute import Moved, Work, move_all
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import Action, MigrationPlan, ModuleSimilarity, PlanStep

Shape = tuple[int, int]

PATH = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
UP_STD = 0.01
ALPHA = 8.0


class MadeModule(NamedTuple):
    """A module with spans of both its weights, and the operators of `prolora` between them."""

    shape: Shape
    k: int
    spans: Spans
    operators: ModuleOperators

    def flops(self, rank: int) -> float:
        """Operations of our products for one update of a rank: what the prepared form needs."""
        return sum(
            2.0
            * rank
            * (side.operator.analysis.size + sum(s.size for s in side.operator.synthesis))
            for side in self.operators
        )


def made_module(shape: Shape, k: int, stored: int | None = None) -> MadeModule:
    """A module whose weights have random spans.

    Args:
        shape: `(out, in)`.
        k: dimension of all four spans.
        stored: how many singular vectors of either side are known; all of them if None. Where
            they fill their space, complements are known, too (`pair_work`).
    """
    rng = np.random.default_rng(shape)
    stored = min(shape) if stored is None else stored
    dims = (*shape, *shape)
    vectors = [orthonormal(rng, dim, stored).astype(np.float32) for dim in dims]
    u_s, v_s, u_t, v_t = (_span(each, k) for each in vectors)
    operators = ModuleOperators(
        prepare_side("prolora", u_s, u_t), prepare_side("prolora", v_s, v_t)
    )
    inside = (np.ascontiguousarray(span.inside) for span in (u_s, v_s, u_t, v_t))
    return MadeModule(shape, k, Spans(*inside), operators)


def _span(vectors: np.ndarray, k: int) -> Span:
    dim, columns = vectors.shape
    return Span(vectors[:, :k], vectors[:, k:] if columns == dim else None)


class _OneModule(BasePair):
    """A pair of which the operators of one module are all that there is, and all that is asked."""

    def __init__(self, operators: ModuleOperators):
        self._operators = operators

    def prepare_operators(self, pairs, options, progress=None) -> None:
        """Has them."""

    def operators(self, pair, options) -> ModuleOperators:
        """The operators."""
        return self._operators


class Updates:
    """Updates of one rank on one module, one per adapter.

    Args:
        module: which they are on.
        rank: of each of them.
        adapters: how many.
    """

    def __init__(self, module: MadeModule, rank: int, adapters: int):
        self.module, self.rank, self.adapters = module, rank, adapters
        rng, (out, width) = np.random.default_rng((rank, adapters)), module.shape
        self._loras = []
        for _ in range(adapters):
            down = rng.standard_normal((rank, width), np.float32) * np.float32(width**-0.5)
            up = rng.standard_normal((out, rank), np.float32) * np.float32(UP_STD)
            self._loras.append(
                LoraModule(PATH, down.astype(np.float16), up.astype(np.float16), ALPHA)
            )

    # --- ours -------------------------------------------------------------------------------------

    def migrated(self, options: MigrationOptions, first: int | None = None) -> list[Moved]:
        """What the engine makes of the first adapters (all if None): arrays on the host."""
        k = self.module.k
        step = PlanStep(PATH, PATH, Action.PROJECT, ModuleSimilarity(1, 1, 1, 1, k, k), ())
        plan = MigrationPlan(options, "source", "target", (step,), (), ())
        works = [Work({PATH: lora}, plan) for lora in self._loras[:first]]
        found = []
        for results in move_all(works, _OneModule(self.module.operators), options):
            moved = results[PATH]
            assert isinstance(moved, Moved), moved
            found.append(moved)
        return found

    def ours(self, rank: str) -> Callable[[], None]:
        """The engine, from factors in memory to a file's factors; `rank` as in the options."""
        options = MigrationOptions(method="prolora", rank=rank)

        def run() -> None:
            self.migrated(options)

        return run

    @property
    def places(self) -> int:
        """Adapters of the engine's first block, padding included."""
        return next(split_rows(self.adapters, rank_class(self.rank)))[1]

    def block_rows(self) -> tuple[jax.Array, jax.Array]:
        """That block's rows on the device, left and right."""
        places, rank = self.places, rank_class(self.rank)
        return rows_of(*stacked(self._loras[:places], rank, places))

    def sides(self, *, wide: bool = False) -> Callable[[], list[Any]]:
        """Both sides of one block, device to device: products and Gram matrices."""
        rows = self.block_rows()
        operators = [jax.tree.map(jnp.asarray, side.operator) for side in self.module.operators]
        forms = [side.form for side in self.module.operators]

        def run() -> list[Any]:
            with jax.enable_x64(wide):
                return [
                    apply_side(form, operator, block, wide)
                    for form, operator, block in zip(forms, operators, rows, strict=True)
                ]

        return run

    # --- baselines --------------------------------------------------------------------------------

    @cached_property
    def factors(self) -> tuple[Any, Any]:
        """`(adapters, out, rank)` and `(adapters, rank, in)`, float32 tensors with the scale."""
        torch = baselines.library()
        ups = np.stack(
            [lora.up.astype(np.float32) * np.float32(lora.scale) for lora in self._loras]
        )
        downs = np.stack([lora.down.astype(np.float32) for lora in self._loras])
        return torch.from_numpy(ups), torch.from_numpy(downs)

    def baseline(self, name: str) -> Callable[[], Any]:
        """`paper`, `thin` or `wide`, or one of these with ` cut`: back to the rank that came in.

        The first two take one adapter, `wide` takes all.
        """
        name, _, cut = name.partition(" ")
        layer = self._layers(name)
        up, down = (each[None] if name == "wide" else each[0] for each in self.factors)
        work = layer.migrate if cut else layer.project
        return lambda: work(up, down)

    def _layers(self, name: str) -> Any:
        if name not in self._made:
            spans = self.module.spans
            self._made[name] = {
                "paper": lambda: PaperLayer(spans),
                "thin": lambda: ThinLayer(spans),
                "wide": lambda: WideLayers([spans]),
            }[name]()
        return self._made[name]

    @cached_property
    def _made(self) -> dict[str, Any]:
        return {}

    # --- the same update --------------------------------------------------------------------------

    def dense(self, name: str) -> np.ndarray:
        """The first adapter's dense update on the target, float64, by `ours` or a baseline."""
        name, _, cut = name.partition(" ")
        if name == "ours":
            rank = "source" if cut else "exact"
            options = MigrationOptions(method="prolora", rank=rank, dtype="float32")
            factors = self.migrated(options, first=1)[0].factors
            return factors.up.astype(np.float64) @ factors.down
        found = self.baseline(f"{name} cut" if cut else name)()
        if name == "paper" and not cut:
            return found.double().numpy()
        pairs: Iterable[Sequence[Any]] = found if name == "wide" and not cut else [found]
        total = np.zeros(self.module.shape)
        for up, down in pairs:
            if name == "wide":
                up, down = up[0, 0], down[0, 0]
            total += up.double().numpy() @ down.double().numpy()
        return total
