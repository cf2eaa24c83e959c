"""Any readable checkpoint to one file: GGUF (Q4_0, Q8_0) or SafeTensors, tensor by tensor, in bounded memory.

The output has Mistral's names, and params.json and tekken.json beside it. It appears under its name only when
it is complete: until then it is a hidden file next to it, which any failure removes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from kernels.errors import KernelError
from kernels.quant import nbytes, pack, row_bytes, unpack
from kernels.tensor import KINDS
from pipeline.errors import GraphError, SinkError
from stages.errors import WeightsError
from stages.voxtral.config import PARAMS_KEY, Config, load_config, to_params
from stages.voxtral.names import Checkpoint, Row, open_checkpoint

Progress = Callable[[int, int], None]  # (bytes written, bytes in all)

ARCHITECTURE = "voxtral"  # general.architecture of the published GGUF files
FLOAT_KINDS = ("bf16", "f16", "f32")  # what SafeTensors holds
_DEFAULT_KIND = {".gguf": "q4_0", ".safetensors": "bf16"}
_TILE_BYTES = 1 << 24  # of f32 converted at a time; bounds memory beside the tensor being written
_SPARE_BYTES = 1 << 20  # headers, params.json


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor to be written: its name in the file, and a recipe for its stored bytes, in order."""

    name: str
    kind: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[np.ndarray]]

    @property
    def nbytes(self) -> int:
        return nbytes(self.kind, self.shape)


def quantize(
    source: str | Path, out: str | Path, kind: str | None = None, progress: Progress | None = None
) -> Path:
    """Convert the checkpoint at `source` into the file `out`.

    Parameters
    ----------
    source : whatever `open_weights` reads
    out : a .gguf or a .safetensors file; params.json and tekken.json go into its folder
    kind : for .gguf what matrices become, q4_0 (default), q8_0, bf16, f16 or f32, all else being f32;
        for .safetensors what every tensor becomes, bf16 (default), f16 or f32

    Raises
    ------
    GraphError     if `out` or `kind` is not one of these
    WeightsError   if `source` is unreadable or incomplete, or holds values that `kind` cannot carry
    SinkError      if `out` cannot be written; no partial file is left
    """
    out = Path(out)
    kind = check_target(out, kind)
    checkpoint = open_checkpoint(source)
    if any(out.resolve() == path.resolve() for data in checkpoint.weights.files for path in data.paths):
        raise GraphError(f"{out}: is also what is to be read; write to another name")
    pieces = [_convert(checkpoint, row, kind_for(out, row, kind)) for row in checkpoint.rows.values()]
    check_folder(out, checkpoint.config)
    write_weights(out, pieces, checkpoint.config, progress)
    beside = (checkpoint.tekken.with_name(name) for name in ("params.json", "tekken.json"))
    put_beside(out, checkpoint.config, {path.name: path.read_bytes() for path in beside if path.is_file()})
    return out


def check_target(out: Path, kind: str | None) -> str:
    """The kind to be written, or GraphError if `out` cannot hold it."""
    if out.suffix not in _DEFAULT_KIND:
        raise GraphError(f"{out}: expected a name ending in .gguf or .safetensors, found {out.suffix!r}")
    kind = kind or _DEFAULT_KIND[out.suffix]
    allowed = KINDS if out.suffix == ".gguf" else FLOAT_KINDS
    if kind not in allowed:
        raise GraphError(f"{out}: a {out.suffix} file is written as {', '.join(allowed)}, not {kind!r}")
    return kind


def kind_for(out: Path, row: Row, kind: str) -> str:
    """What `row` becomes in `out`: in GGUF norms, biases and convolutions stay f32."""
    return kind if row.linear or out.suffix == ".safetensors" else "f32"


def write_weights(
    out: Path, pieces: Sequence[Piece], config: Config, progress: Progress | None = None
) -> None:
    """Write `pieces` as `out`, complete or not at all.

    Raises
    ------
    SinkError   if the disk is full, or the folder absent or closed to us
    """
    total = sum(piece.nbytes for piece in pieces)
    metadata = {PARAMS_KEY: json.dumps(to_params(config))}
    with _complete_or_absent(out, total) as path:
        write = _write_gguf if out.suffix == ".gguf" else _write_safetensors
        write(path, pieces, metadata, _counted(progress, total))


def check_folder(out: Path, config: Config) -> None:
    """GraphError if the folder of `out` has the params.json of another model: one folder holds one."""
    params = out.parent / "params.json"
    if params.is_file() and load_config(params) != config:
        raise GraphError(f"{params}: is that of another model; write {out.name} into a folder of its own")


def put_beside(out: Path, config: Config, files: Mapping[str, bytes]) -> None:
    """Put `files`, and a params.json if none is among them, into the folder of `out`; replace nothing."""
    params = json.dumps(to_params(config), indent=2).encode() + b"\n"
    for name, content in {"params.json": params, **files}.items():
        beside = out.parent / name
        if not beside.exists():
            with _complete_or_absent(beside, len(content)) as path:
                path.write_bytes(content)


def _convert(checkpoint: Checkpoint, row: Row, kind: str) -> Piece:
    """The tensor `row` as `kind`: its very bytes where it is that already, else repacked by tiles of rows."""
    stored = checkpoint.weights.entries[checkpoint.stored[row.name]].kind

    def chunks() -> Iterator[np.ndarray]:
        raw = checkpoint.raw(row.name)[0]
        if kind == stored:
            yield raw
            return
        columns = row.shape[-1] if row.linear else prod(row.shape)
        width = row_bytes(stored, columns)
        raw = raw.reshape(-1, width)
        tile = max(1, _TILE_BYTES // (4 * columns))
        for start in range(0, len(raw), tile):
            part = raw[start : start + tile]
            try:
                yield pack(unpack(part, stored, (len(part), columns)), kind)
            except KernelError as reason:
                raise WeightsError(
                    f"{checkpoint.weights.source}: tensor {row.mistral!r}: {reason}"
                ) from reason

    try:
        nbytes(kind, row.shape)
    except KernelError as reason:
        raise WeightsError(f"{checkpoint.weights.source}: tensor {row.mistral!r}: {reason}") from reason
    return Piece(row.mistral, kind, row.shape, chunks)


def _write_gguf(
    path: Path, pieces: Sequence[Piece], metadata: Mapping[str, str], count: Callable[[int], None]
) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, ARCHITECTURE)
    try:
        for key, value in metadata.items():
            writer.add_string(key, value)
        for piece in pieces:
            kind = GGMLQuantizationType[piece.kind.upper()]
            writer.add_tensor_info(
                piece.name, piece.shape, np.dtype(np.float32), piece.nbytes, raw_dtype=kind
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for piece in pieces:
            writer.write_tensor_data(_whole(piece))
            count(piece.nbytes)
        writer.flush()
    finally:
        writer.close()


def _whole(piece: Piece) -> np.ndarray:
    """The stored bytes of one tensor together, as the gguf package wants them."""
    stored, at = np.empty(piece.nbytes, np.uint8), 0
    for chunk in piece.chunks():
        stored[at : at + chunk.nbytes] = chunk.reshape(-1)
        at += chunk.nbytes
    return stored


def _write_safetensors(
    path: Path, pieces: Sequence[Piece], metadata: Mapping[str, str], count: Callable[[int], None]
) -> None:
    """Header, then tensors without gaps. The safetensors package would want them all in memory at once."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    at = 0
    for piece in pieces:
        span = [at, at + piece.nbytes]
        header[piece.name] = {"dtype": piece.kind.upper(), "shape": list(piece.shape), "data_offsets": span}
        at = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start on a multiple of 8, as the package itself arranges
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for piece in pieces:
            for chunk in piece.chunks():
                file.write(np.ascontiguousarray(chunk).data)
                count(chunk.nbytes)


def _counted(progress: Progress | None, total: int) -> Callable[[int], None]:
    done = 0

    def count(n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(done, total)

    return count


@contextmanager
def _complete_or_absent(out: Path, size: int) -> Iterator[Path]:
    """A hidden file that takes the name `out` if all goes well, and vanishes if not."""
    hidden = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        if not out.parent.is_dir():
            raise SinkError(f"{out}: the folder {str(out.parent)!r} does not exist; make it first")
        free = shutil.disk_usage(out.parent).free
        if free < size + _SPARE_BYTES:
            raise SinkError(f"{out}: needs {size / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free")
        yield hidden
        hidden.replace(out)
    except OSError as reason:
        raise SinkError(f"{out}: cannot be written: {reason.strerror or reason}") from reason
    finally:
        hidden.unlink(missing_ok=True)
