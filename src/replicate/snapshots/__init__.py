"""The shared listing of a bucket: what a list of experiments shows of those that are over, in a few
objects. `docs/format.md` is the contract.

A *manifest* names immutable *parts*. Manifests are numbered, and a number is given once: each is
made from the one before, so that none can lose what another had. A part of rows holds, of each
experiment, its inputs and those of its events that a listing needs, encoded as they are where they
come from; parts of ids hold its checkpoints' ids. All of it can be had again from the experiments.

It knows these bytes, and believes none of them. When to make a snapshot is not its affair.
"""

from replicate.snapshots.manifest import (
    GROUP_IDS,
    LAST_NUMBER,
    MANIFESTS,
    PART_BYTES,
    PARTS,
    Group,
    Manifest,
    Part,
    UnknownVersionError,
    encode_group,
    encode_manifest,
    find_checkpoints,
    latest_key,
    manifest_key,
    manifest_number,
    read_manifest,
    read_part,
)
from replicate.snapshots.rows import Row, decode_row, encode_deleted, encode_row, split_rows

__all__ = [
    "GROUP_IDS",
    "LAST_NUMBER",
    "MANIFESTS",
    "PARTS",
    "PART_BYTES",
    "Group",
    "Manifest",
    "Part",
    "Row",
    "UnknownVersionError",
    "decode_row",
    "encode_deleted",
    "encode_group",
    "encode_manifest",
    "encode_row",
    "find_checkpoints",
    "latest_key",
    "manifest_key",
    "manifest_number",
    "read_manifest",
    "read_part",
    "split_rows",
]
