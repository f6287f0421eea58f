"""That devices are this process's own, and wait for those of no other host."""

import threading

import jax

from prolora_jax.errors import ProloraError, Refusal

_SECONDS = 60.0


def require_own_devices(seconds: float = _SECONDS) -> None:
    """Start the devices; on a TPU host that is taken for a part of its slice this never ends.

    Args:
        seconds: that it may take.

    Raises:
        ProloraError: it takes longer, or the devices are those of several processes.
    """
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(jax.process_count()), daemon=True)
    thread.start()
    thread.join(seconds)
    if found != [1]:
        told = f"{found[0]} processes" if found else f"no answer in {seconds:g} s"
        raise ProloraError(
            f"TPU: found {told}; expected the chips of this host alone; use single-host slices "
            "(as v5litepod-4), or set TPU_PROCESS_BOUNDS=1,1,1 and TPU_CHIPS_PER_PROCESS_BOUNDS "
            "to how this host's chips lie (docs/fleet.md)",
            code=Refusal.UNSUPPORTED_CONFIG,
        )
