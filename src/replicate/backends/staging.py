"""Many files on their way to a disk at once: each is begun to be written when it comes, and at the
end one wait for the disk is that for all. It knows nothing of what the keys are for.
"""

from __future__ import annotations

import threading

from replicate.backends.base import Content
from replicate.backends.files import Staged
from replicate.backends.local import LocalBackend


class Staging:
    """Keys that are to be created where they do not exist, as by `put_if_absent`, with contents
    that need not be kept until then. Threads may share it."""

    def __init__(self, backend: LocalBackend) -> None:
        self._backend = backend
        self._files: dict[str, Staged | None] = {}
        self._sizes: dict[str, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._files)

    def add(self, key: str, content: Content) -> None:
        """Begin to write `key`, or touch it where it is there."""
        file = self._backend.stage(key, content)
        with self._lock:
            self._files[key], self._sizes[key] = file, len(content)

    def publish(self) -> dict[str, int]:
        """All that was added is there, durably; return the sizes of what this call has created."""
        with self._lock:
            files, self._files = self._files, {}
            sizes, self._sizes = self._sizes, {}
        return {key: sizes[key] for key in self._backend.publish(files)}

    def discard(self) -> None:
        """Nothing is left of what was added and not published."""
        with self._lock:
            files, self._files = self._files, {}
        for file in files.values():
            if file is not None:
                file.discard()
