"""The HTTP parser, against every way of cutting a response and against what is none."""

from __future__ import annotations

import gzip
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmbench.client import http
from pytest_llmbench.client.http import MAX_HEADER_BYTES, ResponseParser, bearer, build_post
from pytest_llmbench.errors import RequestError
from tests.servers.scripted import STREAM_END, STREAM_HEAD, chunk, http_response
from tests.unit.client.helpers import PATIENT, cut


def compressed_response(encoding: str, packed: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(packed)}\r\n\r\n"
    return head.encode() + packed


def body_of(parser: ResponseParser, *reads: bytes) -> bytes:
    return b"".join(piece for data in reads for piece in parser.feed(data))


@PATIENT
@given(pieces=st.lists(st.binary(min_size=1, max_size=20), max_size=6), places=st.lists(st.integers(0, 1000)))
def test_any_split_of_a_chunked_response_gives_the_same_body(pieces: list[bytes], places: list[int]) -> None:
    response = STREAM_HEAD + b"".join(map(chunk, pieces)) + STREAM_END
    parser = ResponseParser()
    assert body_of(parser, *cut(response, places)) == b"".join(pieces)
    assert parser.complete
    assert parser.status == 200
    assert parser.headers["content-type"] == "text/event-stream"


@PATIENT
@given(body=st.binary(max_size=40), places=st.lists(st.integers(0, 1000)))
def test_any_split_of_a_response_with_a_length_gives_the_same_body(body: bytes, places: list[int]) -> None:
    parser = ResponseParser()
    assert body_of(parser, *cut(http_response("503 Busy", "text/plain", body), places)) == body
    assert parser.complete
    assert parser.status == 503


def test_not_complete_after_an_interim_response() -> None:
    parser = ResponseParser()
    assert body_of(parser, b"HTTP/1.1 100 Continue\r\n\r\n") == b""
    assert not parser.complete


@PATIENT
@given(places=st.lists(st.integers(0, 1000)))
def test_an_interim_response_is_not_the_answer(places: list[int]) -> None:
    parser = ResponseParser()
    response = b"HTTP/1.1 100 Continue\r\n\r\n" + http_response("200 OK", "text/plain", b"the answer")
    assert body_of(parser, *cut(response, places)) == b"the answer"
    assert parser.complete
    assert parser.status == 200


def test_not_complete_before_the_last_chunk() -> None:
    parser = ResponseParser()
    assert parser.status == 0
    assert body_of(parser, STREAM_HEAD + chunk(b"abc")) == b"abc"
    assert not parser.complete


def test_a_response_without_headers_has_a_status() -> None:
    parser = ResponseParser()
    assert body_of(parser, b"HTTP/1.1 503 Busy\r\n\r\nlater") == b"later"
    assert parser.status == 503


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x16\x03\x01\x02\x00",
        b"HTTP/1.1 OK 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
    ids=["ssh", "tls", "status line", "chunk size", "upgrade"],
)
def test_what_is_no_http_answer_is_refused(data: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        ResponseParser().feed(data)
    assert caught.value.code == "bad_response"


@PATIENT
@given(data=st.binary(max_size=80), behind=st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", STREAM_HEAD]))
def test_random_bytes_raise_nothing_else(data: bytes, behind: bytes) -> None:
    with suppress(RequestError):
        ResponseParser().feed(behind + data)


@pytest.mark.parametrize(
    "reads",
    [
        [b"X-%d: " % number + b"a" * 1000 + b"\r\n" for number in range(100)],
        [b"".join(b"X-%d: " % number + b"a" * 1000 + b"\r\n" for number in range(100))],
        [b"X: ", *[b"a" * 1000] * 100],
        [b"a" * 1000] * 100,
    ],
    ids=["many", "many in one read", "one endless value", "one endless name"],
)
def test_huge_headers_are_refused(reads: list[bytes]) -> None:
    parser = ResponseParser()
    parser.feed(b"HTTP/1.1 200 OK\r\n")
    with pytest.raises(RequestError, match=str(MAX_HEADER_BYTES)) as caught:
        body_of(parser, *reads)
    assert caught.value.code == "bad_response"


def test_the_body_does_not_count_as_header() -> None:
    parser = ResponseParser()
    body = b"x" * (2 * MAX_HEADER_BYTES)
    reads = [STREAM_HEAD, *cut(chunk(body), list(range(0, len(body), 5000))), STREAM_END]
    assert body_of(parser, *reads) == body


def test_a_post_leaves_in_one_piece() -> None:
    request = build_post("127.0.0.1:8080", "/completion", b'{"a":1}', "secret")
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /completion HTTP/1.1"
    assert {"Host: 127.0.0.1:8080", "Content-Length: 7", "Authorization: Bearer secret"} <= set(lines)
    assert body == b'{"a":1}'
    assert b"Authorization" not in build_post("127.0.0.1:8080", "/completion", b"", None)


def test_a_post_asks_for_no_compression() -> None:
    assert b"\r\nAccept-Encoding: identity\r\n" in build_post("127.0.0.1", "/", b"", None)


@pytest.mark.parametrize("key", ["k€y", "key\n", "key\r\nX-Injected: yes"], ids=ascii)
def test_a_key_that_no_header_can_carry_is_refused_and_not_told(key: str) -> None:
    with pytest.raises(RequestError) as caught:
        bearer(key)
    assert caught.value.code == "wrong_key"
    assert key not in caught.value.message


class TestCompression:
    @PATIENT
    @given(
        body=st.binary(max_size=200),
        places=st.lists(st.integers(0, 1000), max_size=8),
        encoding=st.sampled_from(["gzip", "GZIP", "x-gzip", "deflate"]),
    )
    def test_any_split_of_a_compressed_response_gives_the_same_body(
        self, body: bytes, places: list[int], encoding: str
    ) -> None:
        packed = zlib.compress(body) if encoding == "deflate" else gzip.compress(body)
        parser = ResponseParser()
        assert body_of(parser, *cut(compressed_response(encoding, packed), places)) == body
        assert parser.complete

    def test_what_was_flushed_is_there_at_once(self) -> None:
        packer, parser = zlib.compressobj(wbits=31), ResponseParser()
        body_of(parser, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n")
        for word in (b"One", b" two", b" three"):
            assert body_of(parser, chunk(packer.compress(word) + packer.flush(zlib.Z_SYNC_FLUSH))) == word

    @pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br"])
    def test_an_encoding_that_is_not_spoken_is_refused_by_name(self, encoding: str) -> None:
        with pytest.raises(RequestError, match=encoding) as caught:
            ResponseParser().feed(compressed_response(encoding, b"\x8b\x03\x80"))
        assert caught.value.code == "unsupported_encoding"

    @pytest.mark.parametrize("encoding", ["identity", ""])
    def test_no_encoding_by_name_is_none(self, encoding: str) -> None:
        assert body_of(ResponseParser(), compressed_response(encoding, b"abc")) == b"abc"

    @pytest.mark.parametrize("encoding", ["gzip", "deflate"])
    def test_broken_compression_is_refused(self, encoding: str) -> None:
        with pytest.raises(RequestError, match="compression") as caught:
            ResponseParser().feed(compressed_response(encoding, b"this is not compressed"))
        assert caught.value.code == "bad_response"

    def test_a_bomb_is_refused_before_it_expands(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(http, "MAX_DECOMPRESSED_BYTES", 1000)
        with pytest.raises(RequestError, match="1000 bytes") as caught:
            ResponseParser().feed(compressed_response("gzip", gzip.compress(b"x" * 100_000)))
        assert caught.value.code == "bad_response"


@pytest.mark.parametrize(
    ("lines", "keeps"),
    [
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", True),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n", False),
        ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n", False),
        ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n", True),
    ],
)
def test_whether_the_connection_is_kept_is_what_the_server_said(lines: str, keeps: bool) -> None:
    parser = ResponseParser()
    parser.feed(lines.encode() + b"\r\n")
    assert parser.complete
    assert parser.keeps_alive is keeps


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("Content-Type: Text/HTML; charset=utf-8\r\n", "text/html"),
        ("content-type:application/json\r\n", "application/json"),
        ("", ""),
    ],
)
def test_the_content_type_is_known_without_its_parameters(line: str, kind: str) -> None:
    parser = ResponseParser()
    parser.feed(f"HTTP/1.1 200 OK\r\n{line}Content-Length: 0\r\n\r\n".encode())
    assert parser.content_type == kind


def test_trailers_after_the_last_chunk_are_no_body() -> None:
    parser = ResponseParser()
    assert body_of(parser, STREAM_HEAD + b"3;q=1\r\nabc\r\n0\r\nX-Checksum: 7\r\n\r\n") == b"abc"
    assert parser.complete
