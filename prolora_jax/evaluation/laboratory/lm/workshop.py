"""The laboratory's folder: language models and adapters, each trained once and then found there.

    OUT/bases/NAME/{config.json, model.safetensors, tokenizer.json, trained.json}
    OUT/adapters/BASE/NAME-sSEED.{safetensors, json}

They are what a user's own files are. The JSON file is written last: with the stamp of the recipe in
it, it says that what stands beside it is finished.
"""

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from shutil import rmtree

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.evaluation.laboratory.lm.bases import MadeLm, derived, new_lm, read_lm, trained
from prolora_jax.evaluation.laboratory.lm.lessons import TaughtAndJudged, taught_and_judged
from prolora_jax.evaluation.laboratory.lm.model_folders import write_model
from prolora_jax.evaluation.laboratory.lm.recipe import LmBase, LmLaboratory, LmLesson
from prolora_jax.evaluation.laboratory.lm.texts import Documents, Encode, encoder_of, held_out
from prolora_jax.evaluation.laboratory.lm.training import LmFactors, new_lora, train_lora
from prolora_jax.io import atomic
from prolora_jax.io.adapters.files import load_adapter, save_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.base_models.lm_files import read_lm_config
from prolora_jax.io.documents import read_json, write_json
from prolora_jax.io.guarded import is_regular, read_small
from prolora_jax.refine.fitting import RefineOptions
from prolora_jax.refine.job.student import factors_of

Tell = Callable[[str], None]
_TOKENIZER, _LARGEST = "tokenizer.json", 2**26


class LmWorkshop:
    """Base models and adapters of one recipe in one folder.

    Attributes:
        folder: where everything stands.
        lab: what to train.
        say: called with a line of progress.
        given: folder of the model that a base of kind `given` is.
    """

    def __init__(
        self,
        folder: Path,
        lab: LmLaboratory,
        say: Tell = lambda line: None,
        given: Path | None = None,
    ):
        self.folder, self.lab, self.say, self.given = folder, lab, say, given
        self._loaded: dict[str, MadeLm] = {}

    @property
    def source(self) -> str:
        """Name of the base that adapters are moved from."""
        return self.lab.bases[0].name

    def base_folder(self, name: str) -> Path:
        """Where a base model is, as `load_base_model` takes it."""
        return self.folder / "bases" / name

    def adapter_file(self, base: str, lesson: LmLesson, seed: int) -> Path:
        """Where an adapter is, as `load_adapter` takes it."""
        return self.folder / "adapters" / base / f"{lesson.name}-s{seed}.safetensors"

    @cached_property
    def encode(self) -> Encode:
        """How texts become tokens, the same for all base models."""
        self.make_base(self.source)
        folder = self.base_folder(self.source)
        return encoder_of(folder, read_lm_config(folder)[0])

    def lm(self, name: str) -> MadeLm:
        """A base model, made before if it was not there; the source and one other are kept."""
        if name not in self._loaded:
            self.make_base(name)
            source = self._loaded.get(self.source)
            self._loaded = {} if source is None else {self.source: source}
            self._loaded[name] = read_lm(self.base_folder(name))
        return self._loaded[name]

    def make_base(self, name: str) -> None:
        """Make a base model that is not there, its ancestors first."""
        base, folder = self.lab.base(name), self.base_folder(name)
        mark, stamp = folder / "trained.json", self.lab.base_stamp(name)
        if (read_json(mark) or {}).get("stamp") == stamp:
            return
        rmtree(folder, ignore_errors=True)
        began = time.process_time()
        parent = self._parent(base)
        tokenizer = parent / _TOKENIZER if parent is not None else None
        if base.kind == "train":
            given = new_lm(self.lab.config, base.seed)
        else:
            assert parent is not None
            given = derived(base, read_lm(parent))
        encode = encoder_of(parent or folder, given.raw)
        made = trained(given, base, self.lab, encode, self.say)
        write_model(folder, made.raw, made.params, base.packing)
        if tokenizer is not None and is_regular(tokenizer):
            atomic.write_bytes(folder / _TOKENIZER, read_small(tokenizer, _LARGEST))
        seconds = time.process_time() - began
        write_json(mark, {"stamp": stamp, "cpu_seconds": seconds})
        self.say(f"base {name}: {seconds:.0f} CPU s")

    def adapter(self, base: str, lesson: LmLesson, seed: int) -> LmFactors:
        """An adapter's factors, trained before if it was not there.

        Args:
            base: name of the model that it is trained on.
            lesson: what it is taught.
            seed: of the adapter.
        """
        file = self.adapter_file(base, lesson, seed)
        mark, stamp = file.with_suffix(".json"), self.lab.adapter_stamp(base, lesson, seed)
        if (read_json(mark) or {}).get("stamp") != stamp:
            made, rows = self.lm(base), self.lesson(lesson, seed).rows
            began = time.process_time()
            spec = load_base_model(self.base_folder(base)).spec
            start = new_lora(spec, self.lab.modules, lesson.rank, seed)
            options = RefineOptions(
                steps=lesson.steps, rate=lesson.rate, batch=lesson.batch, seed=seed
            )
            factors = train_lora(made.model, made.params, start, rows, options)
            save_adapter(as_lm_adapter(factors), file, base=spec, overwrite=True)
            seconds = time.process_time() - began
            write_json(mark, {"stamp": stamp, "cpu_seconds": seconds})
            self.say(f"adapter {lesson.name}-s{seed} of {base}: {seconds:.0f} CPU s")
        return factors_of(load_adapter(file, quiet=True))

    def lesson(self, lesson: LmLesson, seed: int) -> TaughtAndJudged:
        """What an adapter is taught, and what judges it."""
        return taught_and_judged(lesson, self.encode, seed, self.lab.documents, self.lab.judged)

    def own_documents(self, base: str) -> Documents:
        """Held-out text of the kind that a base was trained on last."""
        kind = self.lab.base(base).text
        return held_out(kind, self.encode, self.lab.documents, self.lab.judged)

    def _parent(self, base: LmBase) -> Path | None:
        if base.kind == "given":
            if self.given is None:
                raise UsageError(
                    f"{base.name}: found no folder of this model; expected one of transformers; "
                    f"fetch it with scripts/fetch_lm.py, and name it with --model",
                    code=Refusal.MISSING_FILE,
                )
            return self.given
        if base.parent:
            self.make_base(base.parent)
            return self.base_folder(base.parent)
        return None


def as_lm_adapter(factors: LmFactors) -> Adapter:
    """The record that `save_adapter` writes."""
    modules = (LoraModule(path, down, up) for path, (down, up) in factors.items())
    return Adapter(tuple(modules), "peft")
