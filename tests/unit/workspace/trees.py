"""Trees for the workspace tests, made by descriptors: deeper and wider than paths allow."""

import os
from pathlib import Path


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def chain(parent: Path, depth: int, *, leaf: bytes | None = None) -> None:
    """Directories named `d` in each other, `depth` deep: deeper than a path can be."""
    current = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=current)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=current)
        os.close(current)
        current = below
    if leaf is not None:
        descriptor = os.open("leaf", os.O_WRONLY | os.O_CREAT, dir_fd=current)
        os.write(descriptor, leaf)
        os.close(descriptor)
    os.close(current)


def fill(directory: Path, count: int) -> None:
    parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for number in range(count):
            os.mknod(f"f{number:07}", dir_fd=parent)
    finally:
        os.close(parent)
