"""What lies among adapters and is none, by name: states of training runs, outputs of earlier runs.

A training run keeps optimizers, schedulers and random states beside what it has trained, in files
with the suffixes of adapters; a refinement that was killed keeps what it has done so far. To refuse
them would say that something is wrong.
"""

import re
from pathlib import Path

from prolora_jax.io.outputs.manifest import NAME
from prolora_jax.io.outputs.reports import PAIR_REPORT

WORK_ENDING = ".refine-work"
"""Of the folder beside an output in which a refinement keeps what it has done."""

# As accelerate, transformers, kohya's trainer and DeepSpeed name them, some with a number.
_STATES = re.compile(
    r"(?:optimizer|(?:lr_)?scheduler|sampler|dl_state_dict|(?:grad_)?scaler|training_args"
    r"|rng_state|random_states|custom_checkpoint|training_state)(?:_\d+)*\.(?:bin|pth?|pkl|ckpt)"
    r"|(?:.+_)?(?:optim|model)_states\.pt",
    re.IGNORECASE,
)


# As MLX-LM's trainer names what it saves beside `adapters.safetensors`.
_CHECKPOINTS = re.compile(r"\d+_adapters\.safetensors")


def is_checkpoint_beside(name: str) -> bool:
    """Whether a file in an adapter's folder is, by its name, the adapter at an earlier step."""
    return _CHECKPOINTS.fullmatch(name) is not None


def is_training_state(name: str) -> bool:
    """Whether a file's name is that of a training run's own state."""
    return _STATES.fullmatch(name) is not None


def is_earlier_output(folder: Path) -> bool:
    """Whether a folder is what a run over a catalog wrote."""
    return (folder / NAME).is_file() and (folder / PAIR_REPORT).is_file()


def is_work_folder(folder: Path) -> bool:
    """Whether a folder is, by its name, what a refinement has done so far."""
    return folder.name.endswith(WORK_ENDING)


def work_folder_of(output: Path) -> Path:
    """Where a refinement keeps what it has done.

    Args:
        output: the file, or the folder of several.
    """
    return Path(f"{output}{WORK_ENDING}")
