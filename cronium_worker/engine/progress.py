"""The engine's messages on a pull, summed up over its layers."""

import re
from dataclasses import dataclass
from typing import Any

# Of a layer, in this order. What an engine says besides is worth what it is worth the first time it is said.
_PHASES = (
    "Pulling fs layer",
    "Waiting",
    "Downloading",
    "Verifying Checksum",
    "Download complete",
    "Extracting",
    "Pull complete",
)
_DOWNLOADED = _PHASES.index("Download complete")
_PRESENT = "Already exists"
_RETRYING = re.compile(r"Retrying in \d+ second")
_MEGABYTE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class PullProgress:
    """How far a pull is; bytes are those of the compressed layers that are not here yet."""

    image: str
    layers: int = 0
    layers_done: int = 0
    bytes_done: int = 0
    bytes_total: int = 0

    @property
    def message(self) -> str:
        text = f"pulling {self.image}"
        if self.layers:
            text += f": {self.layers_done} of {self.layers} layers"
        if self.bytes_total:
            text += f", {self.bytes_done / _MEGABYTE:.0f} of {self.bytes_total / _MEGABYTE:.0f} MB"
        return text

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "image": self.image,
            "layers": self.layers,
            "layers_done": self.layers_done,
            "bytes": self.bytes_done,
            "bytes_total": self.bytes_total,
        }


@dataclass
class _Layer:
    best: tuple[int, int] = (-1, 0)  # the phase and the bytes in it: the furthest so far
    done: bool = False
    downloaded: int = 0
    total: int = 0

    def advance(self, phase: int, current: int, total: int) -> bool:
        """Whether this is further than ever: a download that begins again has to catch up first."""
        if phase < _DOWNLOADED:
            self.downloaded, self.total = max(self.downloaded, current), max(self.total, total)
        else:
            self.downloaded = self.total
        self.done = self.done or phase == len(_PHASES) - 1
        further = (phase, current) > self.best
        self.best = max(self.best, (phase, current))
        return further


class Tally:
    """Takes the messages of one pull. Not safe for threads."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._layers: dict[str, _Layer] = {}
        self._said: set[tuple[str, str]] = set()

    def take(self, message: dict[str, Any]) -> bool:
        """Whether the message is progress: not a wait for another try, and nothing that was said before."""
        status, name = str(message.get("status", "")), str(message.get("id", ""))
        if _RETRYING.match(status):
            return False
        if status == _PRESENT:
            layer = self._layers.setdefault(name, _Layer())
            return layer.advance(len(_PHASES) - 1, 0, 0)
        if status in _PHASES:
            detail = message.get("progressDetail") or {}
            layer = self._layers.setdefault(name, _Layer())
            return layer.advance(_PHASES.index(status), detail.get("current") or 0, detail.get("total") or 0)
        new = (name, status) not in self._said
        self._said.add((name, status))
        return new

    def progress(self) -> PullProgress:
        layers = self._layers.values()
        return PullProgress(
            image=self._image,
            layers=len(layers),
            layers_done=sum(layer.done for layer in layers),
            bytes_done=sum(layer.downloaded for layer in layers),
            bytes_total=sum(layer.total for layer in layers),
        )
