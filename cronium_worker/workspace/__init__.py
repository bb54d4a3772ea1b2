"""The job's files on the host: the only package that touches them."""

from cronium_worker.workspace.collection import Collected, Limits, collect, parse_json
from cronium_worker.workspace.directories import Workspace, create, existing, remove
from cronium_worker.workspace.walk import decode_name, encode_name

__all__ = [
    "Collected",
    "Limits",
    "Workspace",
    "collect",
    "create",
    "decode_name",
    "encode_name",
    "existing",
    "parse_json",
    "remove",
]
