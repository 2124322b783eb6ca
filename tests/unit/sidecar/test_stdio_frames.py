"""Messages as text in which only the routed values are exchanged."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolpolicy.sidecar.stdio_frames import (
    ASKED_TOKEN,
    CANCELLED_ID,
    ID,
    Frame,
    FrameError,
    Shape,
    one_line,
    parse,
)


def test_everything_but_the_replaced_values_keeps_its_bytes() -> None:
    text = (
        '{ "jsonrpc":"2.0","id" : "a\\u0062" , "method":"m", "params":{"_meta":{"progressToken": 7},"n":1.10,"e":1E2}}'
    )
    changed = Frame.of(text).replaced({ID: "12", ASKED_TOKEN: '"x"'})
    assert changed == text.replace('"a\\u0062"', "12").replace(": 7", ': "x"')


def test_a_path_that_is_not_there_is_passed_over() -> None:
    text = '{"jsonrpc":"2.0","method":"x","params":[1]}'
    assert Frame.of(text).replaced({ID: "1", ASKED_TOKEN: "2", CANCELLED_ID: "3"}) == text


def test_an_integer_too_long_for_python_passes_unchanged() -> None:
    text = '{"jsonrpc":"2.0","id":1,"method":"x","params":{"n":' + "9" * 5000 + "}}"
    assert Frame.of(text).replaced({ID: "2"}) == text.replace('"id":1', '"id":2')


@pytest.mark.parametrize(
    ("body", "shape", "method", "request_id"),
    [
        ('{"jsonrpc":"2.0","id":1,"method":"ping"}', Shape.REQUEST, "ping", 1),
        ('{"jsonrpc":"2.0","method":"n"}', Shape.NOTIFICATION, "n", None),
        ('{"jsonrpc":"2.0","id":"1","result":{}}', Shape.RESPONSE, "", "1"),
        ('{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":""}}', Shape.RESPONSE, "", None),
    ],
)
def test_the_kinds_of_messages(body: str, shape: Shape, method: str, request_id: object) -> None:
    (frame,), batch = parse(body.encode())
    assert (frame.shape, frame.method, frame.id, batch) == (shape, method, request_id, False)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", -32700),
        (b"{", -32700),
        (b"[" * 100_000, -32700),
        (b'{"jsonrpc":"2.0","method":"x"} {}', -32700),
        (b'{"jsonrpc":"2.0","method":"\xff"}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":NaN}}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"x"}', -32600),
        (b'{"jsonrpc":"2.0","id":true,"method":"x"}', -32600),
        (b'{"jsonrpc":"2.0","id":null,"method":"x"}', -32600),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"x"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"x","result":{}}', -32600),
        (b'{"jsonrpc":"2.0","id":1}', -32600),
        (b"[]", -32600),
        (b"[1]", -32700),
    ],
)
def test_what_is_no_message_is_refused(body: bytes, code: int) -> None:
    with pytest.raises(FrameError) as caught:
        parse(body)
    assert caught.value.code == code


def test_a_batch_is_told_apart() -> None:
    frames, batch = parse(b'[{"jsonrpc":"2.0","id":1,"method":"a"}, {"jsonrpc":"2.0","method":"b"}]')
    assert ([frame.method for frame in frames], batch) == (["a", "b"], True)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(params=st.dictionaries(st.text(), _JSON, max_size=4), indent=st.sampled_from([None, 2]), plain=st.booleans())
def test_a_line_means_the_same_and_no_reader_sees_two(
    params: dict[str, object], indent: int | None, plain: bool
) -> None:
    message = {"jsonrpc": "2.0", "id": 1, "method": "m", "params": params}
    text = json.dumps(message, ensure_ascii=plain, indent=indent)
    if any(0xD800 <= ord(c) <= 0xDFFF for c in text):
        return
    line = one_line(Frame.of(text).replaced({ID: "2"}))
    assert len(line.splitlines()) == 1
    assert json.loads(line) == message | {"id": 2}
