"""Characters out of bytes that arrive in any pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stages.text.utf8 import Characters


@given(st.lists(st.binary(max_size=5)))
def test_any_cutting_of_any_bytes_decodes_as_the_whole(pieces: list[bytes]) -> None:
    characters = Characters()
    text = "".join(map(characters.push, pieces)) + characters.flush()
    assert text == b"".join(pieces).decode("utf-8", "replace")


@given(st.text())
def test_a_character_appears_with_its_last_byte_and_not_before(text: str) -> None:
    characters = Characters()
    for character in text:
        *head, last = (bytes([byte]) for byte in character.encode())
        assert [characters.push(byte) for byte in head] == [""] * len(head)
        assert characters.push(last) == character


def test_only_the_bytes_that_are_invalid_are_replaced() -> None:
    characters = Characters()
    assert characters.push(b"a\xe4\xb8") == "a"
    assert characters.push(b"b\xff\xc3") == "\ufffdb\ufffd"
    assert characters.push(b"\xa9") == "é"


def test_flush_replaces_what_is_held_and_starts_afresh() -> None:
    characters = Characters()
    assert characters.push(b"\xf0\x9f\x98") == ""
    assert characters.flush() == "\ufffd"
    assert characters.flush() == ""
    assert characters.push("ü".encode()) == "ü"
