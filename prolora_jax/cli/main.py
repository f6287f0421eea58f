"""The `prolora` command: parses, calls the package, prints. Nothing else of the package prints."""

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError, Group
from cyclopts.config import Dict, Yaml

from prolora_jax.errors import ProloraError, Refusal

# Before NumPy is imported. Several BLAS threads on cores that others use, too, made the small
# decompositions here 5 to 15 times slower; a user's own setting stands.
for _library in ("OPENBLAS", "OMP", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

# XLA's pool has a thread per core; with few, programs with batched LAPACK calls can wait for each
# other for ever (jaxlib 0.10.2 on 2 cores).
os.environ.setdefault("NPROC", "16")

app = App(
    name="prolora",
    help=(
        "Move LoRA adapters from one base model to another in closed form.\n\n"
        "Start with: prolora demo"
    ),
    help_format="plaintext",
    help_epilogue=(
        "Exit codes: 0 done (skipped modules are in the report), 1 a file was refused, failed or "
        "did not verify, 2 the command is wrong, 130 interrupted."
    ),
)
# Commands are named by string, so that `prolora --help` imports none of them.
_COMMANDS: dict[str, dict[str, str]] = {
    "Start here": {
        "demo": "The whole job on two small trained nets: a style moved by every arm, judged.",
        "inspect": "What an adapter file is: format, ranks, modules, or why it would be refused.",
        "similarity": "How close two base models are, module by module, and what to expect.",
    },
    "Adapters to another base model": {
        "migrate": "Move adapters, one or a whole catalog, from a source base model to a target.",
        "refine": "Copy adapters, then teach them by the base models' own samples: data-free.",
        "verify": "Recompute a migrated file on an independent dense float64 path and compare.",
        "fleet": "A catalog by many processes and hosts, over folders, s3:// and gs:// URLs.",
        "status": "How far a catalog has come: counts, refusals; all records as a table.",
    },
    "Adapters by themselves": {
        "convert": "Write an adapter in another format, or as a plain LoRA; no device.",
        "diff": "Two adapters module by module: norms, cosine, retained energy.",
    },
    "Pictures": {
        "generate": "Draw with adapters, in Flax: ways of using them side by side in one picture.",
        "evaluate": "What adapters are worth on pictures: drawn by every arm, measured, on a page.",
    },
    "This machine": {
        "subspaces": "Compute subspaces ahead of time, list them, prune the store.",
        "benchmark": "What this machine makes of it, beside PyTorch and the machine's own peaks.",
    },
}
for _place, (_title, _named) in enumerate(_COMMANDS.items()):
    _group = Group(_title, sort_key=_place)
    for _order, (_name, _help) in enumerate(_named.items()):
        app.command(
            f"prolora_jax.cli.{_name}:{_name}",
            name=_name,
            help=_help,
            group=_group,
            sort_key=_order,
        )
_group = Group("Help", sort_key=len(_COMMANDS))
for _flag in ("--help", "--version"):
    app[_flag].group = _group


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line.

    Args:
        arguments: what stands behind `prolora`.

    Returns:
        The exit code: 0, 1, 2 or 130.
    """
    from prolora_jax.cli.console import Answer, close_stores, prepare_streams

    prepare_streams()
    words = _options(arguments)
    Answer.wanted, Answer.given = _asks_for_json(words), False
    try:
        app.config = _config(words)
        code = _answered(arguments) if _SHOWN & {*words} else _called(arguments)
    except CycloptsError as error:
        message = " ".join(str(error).split()) + " See: prolora --help"
        return _end(2, Refusal.BAD_OPTION, message)
    except ProloraError as error:
        return _end(error.exit_code, error.code, str(error))
    except KeyboardInterrupt:
        message = "interrupted; nothing half-written is left behind"
        return _end(130, "interrupted", message)
    except BrokenPipeError:
        # The reader of our output is gone (`prolora inspect ... | head`): not an error of ours.
        sys.stderr.close()
        return 1
    except Exception as error:  # noqa: BLE001 - the last line of defence: no traceback for users
        if os.environ.get("PROLORA_TRACEBACK"):
            raise
        return _end(1, Refusal.INTERNAL, _internal(error))
    finally:
        close_stores()
    return code if isinstance(code, int) else 0


_SHOWN = frozenset({"--help", "-h", "--version"})


def _options(arguments: Sequence[str]) -> list[str]:
    """The words that may be options: those before `--`."""
    words = list(arguments)
    return words[: words.index("--")] if "--" in words else words


def _asks_for_json(words: Sequence[str]) -> bool:
    """Whether JSON is wanted, whatever else is wrong with the command."""
    values = [word.partition("=")[2] for word in words if word.startswith("--json=")]
    return "--json" in words or any(value.lower() not in _NO for value in values)


_NO = frozenset({"no", "n", "0", "false", "f"})


def _called(arguments: Sequence[str]) -> object:
    return app(
        list(arguments), exit_on_error=False, print_error=False, result_action="return_value"
    )


def _answered(arguments: Sequence[str]) -> object:
    """Show what was asked for instead of a command's work: under `--json` in a document, too."""
    from prolora_jax.cli.console import Answer, write_json

    if not Answer.wanted:
        return _called(arguments)
    with redirect_stdout(StringIO()) as shown:
        code = _called(arguments)
    if not Answer.given:
        write_json({"ok": True, "verdict": "shown", "code": None, "message": shown.getvalue()})
    return code


def _end(exit_code: int, code: str, message: str) -> int:
    """Say why the command ends: a line on stderr and, under --json, the document on stdout."""
    from prolora_jax.cli.console import Answer, show_error, write_json

    show_error(message)
    if Answer.wanted and not Answer.given:
        verdict = {2: "usage-error", 130: "interrupted"}.get(exit_code, "refused")
        if code == Refusal.INTERNAL:
            verdict = "internal-error"
        write_json({"ok": False, "verdict": verdict, "code": str(code), "message": message})
    return exit_code


def _internal(error: Exception) -> str:
    """What a user is told of an error of ours, and where its traceback stands."""
    from traceback import format_exception

    from prolora_jax.io.outputs.traces import write_trace

    said = f"internal error, please report it: {type(error).__name__}: {error}. "
    trace = write_trace("".join(format_exception(error)))
    if trace is None:
        return said + "Set PROLORA_TRACEBACK=1 to see where."
    return said + f"The traceback is in {trace}; please attach it."


def _config(words: Sequence[str]) -> tuple[Yaml, ...]:
    """`--config FILE.yaml`: option values by name; the command line wins."""
    from prolora_jax.cli.console import Answer

    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == "--config" and (equals or index + 1 < len(words)):
            found = _yaml(value if equals else words[index + 1])
            # Known before the command is parsed: what is wrong with it is said in JSON, too.
            said = any(word.partition("=")[0] == "--json" for word in words)
            Answer.wanted = Answer.wanted or (not said and found.config.get("json") is True)
            return (found,)
    return ()


class _OptionsFile(Yaml):
    """Options of whichever command is called; one may have the name of a command (`refine`)."""

    def __call__(self, app: App, commands: tuple[str, ...], arguments: Any) -> None:
        """Give every key to the command: read flat, those named like commands are left out."""
        nested = self.config
        for name in reversed(commands):
            nested = {name: nested}
        Dict(nested, source=self.source)(app, commands, arguments)


def _yaml(path: str) -> Yaml:
    from prolora_jax.errors import UsageError
    from prolora_jax.io.documents import require_options_file

    if not Path(path).is_file():
        raise UsageError(
            f"{path}: no such file; expected a YAML file of options. Check --config.",
            code=Refusal.MISSING_FILE,
        )
    require_options_file(Path(path))
    found = _OptionsFile(path, must_exist=True)
    if "rules" in found.config:
        from prolora_jax.plans.rules import read_rules

        read_rules(found.config["rules"])  # refused here by their numbers, not by the parser
    return found
