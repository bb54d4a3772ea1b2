"""What a check of `cronium doctor` found."""

from typing import NamedTuple


class Finding(NamedTuple):
    """`remedy`: empty when all is well. `weak`: jobs run all the same, and the host should be made stronger."""

    name: str
    text: str
    remedy: str = ""
    weak: bool = False
