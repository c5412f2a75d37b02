"""A directory as a manifest, and back: `manifest` holds the values and what is refused, `snapshot`
goes from files to a tree, `checkout` from a tree to files."""

from replicate.tree.checkout import Staged, reader, same_file, stage, through_link
from replicate.tree.manifest import (
    Entry,
    Tree,
    decode_tree,
    encode_tree,
    read_manifest,
    read_tree,
    unsafe_path,
    validate,
)
from replicate.tree.reading import open_entry
from replicate.tree.snapshot import (
    Listing,
    Selected,
    Source,
    add_tree,
    path_text,
    relative,
    select,
)

__all__ = [
    "Entry",
    "Listing",
    "Selected",
    "Source",
    "Staged",
    "Tree",
    "add_tree",
    "decode_tree",
    "encode_tree",
    "open_entry",
    "path_text",
    "read_manifest",
    "read_tree",
    "reader",
    "relative",
    "same_file",
    "select",
    "stage",
    "through_link",
    "unsafe_path",
    "validate",
]
