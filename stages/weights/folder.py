"""From a path to `Weights`: which files belong together, and which of several wins.

A folder may hold, in this order of preference,

    consolidated.safetensors                          Mistral's own file
    model.safetensors                                 transformers' own file
    *.safetensors.index.json and the files it names   transformers, split
    consolidated-00001-of-00002.safetensors, ...      split without an index
    one *.safetensors of any name
    one *.gguf
    shard-aa, shard-ab, ...                           a GGUF file cut into pieces of bytes

so that SafeTensors wins over GGUF: it is the unquantised original.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stages.errors import FileAbsent, FormatError, WeightsError
from stages.jsonfile import Fields, read_json
from stages.weights.gguf import read_gguf
from stages.weights.index import Entry, Weights, quoted
from stages.weights.safetensors import read_safetensors
from stages.weights.shards import Bytes, find_pieces, map_bytes

_INDEX = ".safetensors.index.json"
_INDEX_LIMIT = 1 << 24  # bytes, room for MAX_TENSORS
_OF = re.compile(r"^(.+)-(\d{5})-of-(\d{5})\.safetensors$")
_READERS: dict[str, Callable[..., tuple[list[Entry], dict[str, Any]]]] = {
    "safetensors": read_safetensors,
    "gguf": read_gguf,
}


def open_weights(path: str | Path) -> Weights:
    """Index a checkpoint and map its bytes; nothing but headers is read.

    Parameters
    ----------
    path : a folder, a .safetensors, .safetensors.index.json or .gguf file, or one piece of a split GGUF file

    Raises
    ------
    FileAbsent     if there is nothing to open, or files are missing
    WeightsError   if there are too many, or one cannot be read
    FormatError    if a file's header is not what its format allows
    """
    try:
        return _open_path(Path(path))
    except OSError as reason:
        raise WeightsError(f"{path}: cannot be read: {reason.strerror}") from reason


def _open_path(path: Path) -> Weights:
    if path.is_dir():
        return _open_folder(path)
    if path.name.endswith(_INDEX):
        return _open_index(path)
    if match := _OF.match(path.name):
        return _open_numbered(path.parent, match[1], int(match[3]))
    if path.suffix == ".safetensors":
        return _open(path, "safetensors", map_bytes(path))
    if path.suffix == ".gguf":
        return _open(path, "gguf", map_bytes(path))
    if pieces := find_pieces(path):
        return _open(path, "gguf", map_bytes(*pieces))
    map_bytes(path)  # says so if it is absent
    raise WeightsError(
        f"{path}: expected a folder, .safetensors, .safetensors.index.json, .gguf, or a piece -aa, -ab"
    )


def _open_folder(folder: Path) -> Weights:
    for name in ("consolidated.safetensors", "model.safetensors"):
        if (folder / name).is_file():
            return _open_path(folder / name)
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    kinds = (
        [n for n in names if n.endswith(_INDEX)],
        [n for n in names if _OF.match(n) and "-00001-of-" in n],
        [n for n in names if n.endswith(".safetensors") and not _OF.match(n)],
        [n for n in names if n.endswith(".gguf")],
        [n for n in names if n.endswith("-aa")],
    )
    for found in kinds:
        if len(found) > 1:
            raise WeightsError(
                f"{folder}: {' and '.join(found[:4])} are there; name one of them instead of the folder"
            )
        if found:
            return _open_path(folder / found[0])
    raise FileAbsent(
        f"{folder}: expected consolidated.safetensors, model.safetensors, one .gguf or shard-aa, found "
        f"{', '.join(names[:5]) or 'nothing'}"
    )


def _open_index(path: Path) -> Weights:
    """The files that `path` maps tensors to; every tensor must be where the map says."""
    fields = Fields(read_json(path, _INDEX_LIMIT), str(path)).child("weight_map").data
    for name, file in fields.items():
        if (
            not isinstance(file, str)
            or not file.endswith(".safetensors")
            or Path(file).name != file
            or "\\" in file
        ):
            raise FormatError(
                f"{path}: {quoted(name)} should be mapped to a .safetensors file beside it, found {file!r}"
            )
    files = sorted(set(fields.values()))
    if not files:
        raise FormatError(f"{path}: weight_map is empty")
    weights = _open(path, "safetensors", *(map_bytes(path.parent / file) for file in files))
    for name, file in fields.items():
        entry = weights.entries.get(name)
        if entry is None or files[entry.file] != file:
            raise WeightsError(
                f"{path}: tensor {quoted(name)} should be in {file}, but is not; are the files of one set?"
            )
    return weights


def _open_numbered(folder: Path, stem: str, count: int) -> Weights:
    if not count:
        raise WeightsError(f"{folder}: {stem}-...-of-00000 counts no files, expected 00001 or more")
    paths = [folder / f"{stem}-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    return _open(folder, "safetensors", *(map_bytes(path) for path in paths))


def _open(source: Path, kind: str, *files: Bytes) -> Weights:
    """Index every one of `files` and join the tables."""
    entries: dict[str, Entry] = {}
    metadata: dict[str, Any] = {}
    for number, data in enumerate(files):
        found, extra = _READERS[kind](data.read, data.size, str(data.paths[0]))
        metadata |= extra
        for entry in found:
            if entry.name in entries:
                raise FormatError(f"{data.paths[0]}: tensor {quoted(entry.name)} is in two files")
            entries[entry.name] = replace(entry, file=number)
    return Weights(source, MappingProxyType(entries), MappingProxyType(metadata), files)
