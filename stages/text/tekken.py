"""Token ids to bytes: Mistral's Tekken vocabulary, `tekken.json`.

Ids below the number of special tokens are special and spell nothing; every other id spells the bytes of
vocabulary entry id - specials. Bytes, not characters: a character may be cut between two ids, so `Characters`
puts them together.

Source: mistral-common, tokens/tokenizers/tekken.py.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stages.errors import ConfigError, FileAbsent, FormatError
from stages.jsonfile import Fields, read_json, repeated

MAX_FILE = 1 << 25  # bytes; the real file has 15 MB. JSON may take twenty times its length once it is parsed
MAX_VOCAB = 1 << 21
MAX_PIECE = 1 << 12  # bytes; the longest real one has 76
SINGLE_BYTES = 256  # the vocabulary opens with every single byte, so any text can be spelt


@dataclass(frozen=True, slots=True)
class Tekken:
    """A vocabulary. `load_tekken` makes one.

    pieces : bytes of every id, b"" for the special ones
    specials : names of the special ids, in order; unnamed ones are <SPECIAL_n>
    audio : the file's audio block, flattened: sampling_rate, streaming_n_left_pad_tokens, num_mel_bins, ...
    """

    pieces: tuple[bytes, ...]
    specials: tuple[str, ...]
    audio: Mapping[str, Any]

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    def bytes_of(self, token: int) -> bytes:
        """What `token` spells; special tokens spell nothing.

        Raises
        ------
        ConfigError   if `token` is not an id of this vocabulary: model and tekken.json do not belong together
        """
        if not 0 <= token < len(self.pieces):
            raise ConfigError(
                f"token {token} is outside the vocabulary of {len(self.pieces)}; is it the model's own?"
            )
        return self.pieces[token]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text that `tokens` spell; bytes that make no character become U+FFFD."""
        return b"".join(map(self.bytes_of, tokens)).decode("utf-8", "replace")


def load_tekken(path: str | Path) -> Tekken:
    """Read and check a tekken.json.

    Raises
    ------
    FileAbsent    if there is none
    FormatError   naming the file, the field, what was expected and what was found
    """
    path = Path(path)
    if not path.is_file():
        raise FileAbsent(f"{path}: no such file; tekken.json comes with the model's weights")
    root = Fields(read_json(path, MAX_FILE), str(path))
    config = root.child("config")
    specials = _specials(root, config.integer("default_num_special_tokens", 0, MAX_VOCAB))
    entries = root.items("vocab")
    size = config.integer("default_vocab_size", len(specials), min(MAX_VOCAB, len(entries) + len(specials)))
    pieces = [_piece(path, rank, entry) for rank, entry in enumerate(entries[: size - len(specials)])]
    if pieces[:SINGLE_BYTES] != [bytes([n]) for n in range(SINGLE_BYTES)][: len(pieces)]:
        raise FormatError(f"{path}: vocab should open with the {SINGLE_BYTES} single bytes in order")
    return Tekken((b"",) * len(specials) + tuple(pieces), specials, _audio(root))


def _piece(path: Path, rank: int, entry: Any) -> bytes:
    if (
        not isinstance(entry, dict)
        or entry.get("rank") != rank
        or not isinstance(entry.get("token_bytes"), str)
    ):
        raise FormatError(f"{path}: vocab[{rank}] should be an object with rank {rank} and token_bytes")
    text = entry["token_bytes"]
    try:
        piece = binascii.a2b_base64(text, strict_mode=True) if len(text) % 4 == 0 else None
    except ValueError:  # binascii.Error, or a character outside ASCII
        piece = None
    if piece is None:
        raise FormatError(f"{path}: vocab[{rank}]: token_bytes should be base64")
    if not 1 <= len(piece) <= MAX_PIECE:
        raise FormatError(f"{path}: vocab[{rank}] should spell 1 to {MAX_PIECE} bytes, spells {len(piece)}")
    return piece


def _specials(root: Fields, count: int) -> tuple[str, ...]:
    """Names by rank; ranks the file leaves out are filled in as mistral-common does."""
    names = [f"<SPECIAL_{n}>" for n in range(count)]
    for index, entry in enumerate(root.items("special_tokens", [])):
        fields = Fields(entry if isinstance(entry, dict) else {}, f"{root.where}: special_tokens[{index}]")
        rank = fields.integer("rank", 0, count - 1)
        names[rank] = fields.text("token_str")
    if (twice := repeated(names)) is not None:
        raise FormatError(f"{root.where}: special token {twice[:40]!r} appears twice")
    return tuple(names)


def _audio(root: Fields) -> Mapping[str, Any]:
    if root.data.get("audio") is None:
        return MappingProxyType({})
    block = dict(root.child("audio").data)
    encoding = block.pop("audio_encoding_config", None)
    return MappingProxyType(block | (encoding if isinstance(encoding, dict) else {}))
