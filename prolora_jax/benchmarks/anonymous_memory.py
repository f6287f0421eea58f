"""The most memory that this process holds for some time, mapped files left out."""

import threading

from prolora_jax.io.process_memory import anonymous_bytes

SAMPLE_SECONDS = 0.02


class AnonymousPeak:
    """Largest anonymous memory of this process between entering and leaving.

    Attributes:
        bytes: the largest of samples taken every 20 ms (`RssAnon`); None where the system does
            not say it.
    """

    def __init__(self):
        self.bytes: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "AnonymousPeak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            now = anonymous_bytes()
            if now is not None:
                self.bytes = max(self.bytes or 0, now)
