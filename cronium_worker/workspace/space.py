"""How much room the file systems have that jobs fill."""

import os
from pathlib import Path
from typing import Literal, NamedTuple

MIN_FREE_INODES = 10_000

Kind = Literal["disk", "inodes"]


class Room(NamedTuple):
    """What is free on the file system of a path. `inodes`: None where the file system does not count them."""

    path: Path
    free_bytes: int
    inodes: int | None

    def short_of(self, *, min_free_bytes: int) -> Kind | None:
        if self.free_bytes < min_free_bytes:
            return "disk"
        return "inodes" if self.inodes is not None and self.inodes < MIN_FREE_INODES else None

    def shortage(self, *, min_free_bytes: int) -> str:
        """What is short, in one line; empty when nothing is."""
        short_of = self.short_of(min_free_bytes=min_free_bytes)
        if short_of == "disk":
            return f"{self.path}: {self.free_bytes} bytes are free, fewer than {min_free_bytes}"
        if short_of == "inodes":
            return f"{self.path}: {self.inodes} inodes are free, fewer than {MIN_FREE_INODES}"
        return ""


def room(path: Path) -> Room | None:
    """The room of a path, or of its nearest parent that exists. None: it cannot be seen from here."""
    for place in (path, *path.parents):
        try:
            state = os.statvfs(place)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        return Room(path, state.f_bavail * state.f_frsize, state.f_favail if state.f_files else None)
    return None
