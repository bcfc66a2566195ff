"""Headers of remote files: few bytes of them, no secret to strangers, and no server that can do harm."""

from __future__ import annotations

import itertools
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import requests

from pytest_llmbench.core.gguf import parse_header
from pytest_llmbench.errors import ModelError
from pytest_llmbench.runtime.modelstore import remote_header
from pytest_llmbench.runtime.modelstore.remote_header import RemoteHeader, read_remote_header
from tests.servers.range_server import Answer, RangeServer, Request, ranged, redirect, status, whole
from tests.unit.core.gguf_bytes import DATA_BYTES, TENSORS, USUAL, gguf_file, strings

HUGE_BYTES = 70_000_000_000
CONTENT = gguf_file(USUAL, TENSORS, DATA_BYTES)
LONG = gguf_file([*USUAL, strings("v", ["x" * 90] * 1000)], TENSORS, DATA_BYTES)  # some 98 KB
TOKEN = "hf_secret"
MINE = {"Authorization": f"Bearer {TOKEN}", "X-Key": TOKEN}


def read(answer: Answer) -> RemoteHeader:
    with RangeServer({"/m.gguf": answer}) as server:
        return read_remote_header(f"{server.url}/m.gguf")


def refused(answer: Answer) -> ModelError:
    with RangeServer({"/m.gguf": answer}) as server, pytest.raises(ModelError) as caught:
        read_remote_header(f"{server.url}/m.gguf")
    assert f"{server.url}/m.gguf" in caught.value.message
    return caught.value


def failed(answer: Answer) -> str:
    error = refused(answer)
    assert error.code == "download_failed"
    return error.message


def in_turn(*answers: Answer) -> Answer:
    left = iter(answers)

    def answer(request: Request) -> None:
        next(left)(request)

    return answer


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_header, "_FIRST_BYTES", 10_000)


def test_a_file_takes_one_request() -> None:
    with RangeServer({"/m.gguf": ranged(CONTENT, HUGE_BYTES, ETag='W/"abc"')}) as server:
        found = read_remote_header(f"{server.url}/m.gguf")
        assert found.url == f"{server.url}/m.gguf"
    assert (found.size_bytes, found.requests, found.etag) == (HUGE_BYTES, 1, "abc")
    assert found.header.size_bytes == HUGE_BYTES
    assert found.header.tensors == parse_header(lambda at, n: CONTENT[at : at + n], len(CONTENT), "m").tensors
    assert [asked.headers["range"] for asked in server.asked] == ["bytes=0-8388607"]
    assert server.asked[0].headers["accept-encoding"] == "identity"
    assert server.sent_bytes <= 8 * 1024 * 1024
    assert server.url not in repr(found)


def test_a_file_smaller_than_a_piece() -> None:
    found = read(ranged(CONTENT))
    assert (found.size_bytes, found.requests, found.etag) == (len(CONTENT), 1, None)


@pytest.mark.usefixtures("small_pieces")
def test_a_long_header_takes_larger_and_larger_pieces() -> None:
    with RangeServer({"/m.gguf": ranged(LONG, HUGE_BYTES)}) as server:
        found = read_remote_header(f"{server.url}/m.gguf")
    assert found.header.file_type == "Q4_K_M"
    assert found.header.tensor_count == 2
    begins = [int(asked.headers["range"].removeprefix("bytes=").partition("-")[0]) for asked in server.asked]
    assert begins[:2] == [0, 10_000]
    assert found.requests == len(begins) <= 5
    assert server.sent_bytes < 2**20


@pytest.mark.usefixtures("small_pieces")
def test_a_server_that_gives_less_than_it_is_asked_for() -> None:
    assert read(ranged(LONG, largest=30_000)).requests == 4
    assert "in pieces that are too small" in failed(ranged(LONG, largest=100))


def test_a_server_that_gives_more_than_it_is_asked_for() -> None:
    def answer(request: Request) -> None:
        request.head(206, {"Content-Range": f"bytes 0-99/{HUGE_BYTES}"})  # no length: as long as the connection
        request.body(itertools.chain([CONTENT], itertools.repeat(bytes(65536))))

    with RangeServer({"/m.gguf": answer}) as server:
        assert read_remote_header(f"{server.url}/m.gguf").header.tensor_count == 2
    assert server.sent_bytes < 64 * 2**20


def test_a_header_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_header, "_MAX_BYTES", 50_000)
    error = refused(ranged(LONG, HUGE_BYTES))
    assert error.code == "bad_model_file"
    assert "no header ends within 50000 bytes" in error.message


# ---------------------------------------------------------------- servers that know no ranges


@pytest.mark.parametrize("content", [CONTENT, LONG])
@pytest.mark.usefixtures("small_pieces")
def test_a_server_that_ignores_ranges_is_not_read_to_the_end(content: bytes) -> None:
    with RangeServer({"/m.gguf": whole(content, HUGE_BYTES)}) as server:
        found = read_remote_header(f"{server.url}/m.gguf")
    assert (found.header.tensor_count, found.size_bytes, found.requests) == (2, HUGE_BYTES, 1)
    assert server.sent_bytes < 64 * 2**20  # what fits into the network's buffers


def test_a_server_that_tells_no_size() -> None:
    def answer(request: Request) -> None:
        request.head(200, {"Connection": "close"})
        request.body(iter([CONTENT]))

    assert "neither ranges nor the file's size" in failed(answer)


@pytest.mark.usefixtures("small_pieces")
def test_a_server_that_forgets_about_ranges() -> None:
    assert "the server does not give it (HTTP 200)" in failed(in_turn(ranged(LONG), whole(LONG)))


# ---------------------------------------------------------------- redirects


def test_another_host_sees_no_secret() -> None:
    with RangeServer({"/signed": ranged(CONTENT, ETag='"of the store"')}) as store:
        moved = redirect(f"{store.url}/signed?signature=s", X_Linked_Etag='"abc"')
        with RangeServer({"/a": redirect("/b", 307), "/b": moved}) as hub, requests.Session() as session:
            session.headers["Cookie"] = f"token={TOKEN}"
            found = read_remote_header(f"{hub.url}/a", headers=MINE, session=session)
            assert "Authorization" not in session.headers
    assert (found.etag, found.requests) == ("abc", 1)
    assert found.url == f"{store.url}/signed?signature=s"
    for asked in hub.asked:
        assert (asked.headers["authorization"], asked.headers["x-key"]) == (f"Bearer {TOKEN}", TOKEN)
    assert [asked.path for asked in hub.asked] == ["/a", "/b"]
    (asked,) = store.asked
    assert TOKEN not in str(asked.headers)
    assert asked.headers["range"] == "bytes=0-8388607"


def test_what_a_session_knows_is_no_secret_to_one_host_only() -> None:
    with RangeServer({"/m.gguf": ranged(CONTENT)}) as store, requests.Session() as session:
        session.headers["authorization"] = f"Bearer {TOKEN}"
        with RangeServer({"/m.gguf": redirect(f"{store.url}/m.gguf")}) as hub:
            read_remote_header(f"{hub.url}/m.gguf", session=session)
    assert hub.asked[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert "authorization" not in store.asked[0].headers


def test_a_password_in_netrc_does_not_replace_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password mine\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with RangeServer({"/m.gguf": ranged(CONTENT)}) as server:
        read_remote_header(f"{server.url}/m.gguf", headers=MINE)
        read_remote_header(f"{server.url}/m.gguf")
    assert [asked.headers.get("authorization") for asked in server.asked] == [f"Bearer {TOKEN}", None]


def test_redirects_that_lead_nowhere() -> None:
    assert "redirects more than 10 times" in failed(redirect("/m.gguf"))
    assert "no address of the web" in failed(redirect("file:///etc/passwd"))
    assert "no usable answer (ValueError)" in failed(redirect("http://[x/"))
    assert "without encryption; use https" in failed(redirect("http://192.0.2.1/m.gguf"))


def test_the_body_of_a_redirect_is_not_read() -> None:
    def answer(request: Request) -> None:
        request.head(302, {"Location": "/there", "Content-Length": str(HUGE_BYTES)})
        request.body(itertools.repeat(bytes(65536)))

    with RangeServer({"/m.gguf": answer, "/there": ranged(CONTENT)}) as server:
        read_remote_header(f"{server.url}/m.gguf")
    assert server.sent_bytes < 64 * 2**20


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://192.0.2.1/m.gguf", "without encryption; use https"),
        ("ftp://127.0.0.1/m.gguf", "no address of the web"),
        ("https:///m.gguf", "no address of the web"),
        ("m.gguf", "no address of the web"),
        ("", "no address of the web"),
        ("http://[x/", "the model's address can not be read: no usable answer (ValueError)"),
        ("http://127.0.0.1:99999/m.gguf", "no usable answer"),
    ],
)
def test_addresses_that_are_not_asked(url: str, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_remote_header(url)
    assert words in caught.value.message
    assert caught.value.code == "download_failed"


def test_who_may_be_asked_without_encryption() -> None:
    with requests.Session() as session:
        careful, careless = (remote_header._Download("https://hub/m", {}, session, way) for way in (False, True))
    for url, before in (("http://localhost/m", None), ("http://127.9.9.9/m", "http"), ("http://[::1]/m", None)):
        assert careful._checked(url, before).scheme == "http"
    for url, before in (("http://127.0.0.1/m", "https"), ("http://hub/m", None), ("http://localhost.x/m", None)):
        assert careless._checked(url, before).scheme == "http"
        with pytest.raises(ModelError, match="without encryption"):
            careful._checked(url, before)


# ---------------------------------------------------------------- refusals and nonsense


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (404, "model_not_found", "does not exist (HTTP 404); correct its address"),
        (410, "model_not_found", "does not exist"),
        (
            401,
            "model_access_denied",
            "gated or private, or does not exist; accept its terms on its page and set a token",
        ),
        (403, "model_access_denied", "HTTP 403"),
        (429, "download_failed", "asks to come back later (HTTP 429); try again later"),
        (500, "download_failed", "does not give it (HTTP 500)"),
        (503, "download_failed", "asks to come back later"),
        (204, "download_failed", "HTTP 204"),
        (304, "download_failed", "HTTP 304"),
    ],
)
def test_refusals(code: int, error: str, words: str) -> None:
    found = refused(status(code))
    assert found.code == error
    assert words in found.message
    assert found.evidence == {"http_status": code}


def test_files_that_are_no_models() -> None:
    for content, words in (
        (b"", "it is empty"),
        (b"<!doctype html>" * 10, "it begins with b'<!do', not with b'GGUF'"),
        (CONTENT[:-1], f"it is cut off: {len(CONTENT) - 1} of {len(CONTENT)} bytes are there"),
        (CONTENT[:200], "go beyond its end"),
    ):
        error = refused(ranged(content))
        assert error.code == "bad_model_file"
        assert words in error.message
        assert "correct its address or its name in the models file" in error.message
    assert refused(whole(b"")).code in {"bad_model_file", "download_failed"}


@pytest.mark.parametrize(
    "told",
    [
        None,
        "",
        "bytes 0-99/*",
        "bytes 1-99/100000",
        "bytes */100000",
        "bytes 0-99/-5",
        "bytes 0-99/" + "9" * 5000,
        "items 0-99/100000",
    ],
)
def test_another_piece_than_the_one_asked_for(told: str | None) -> None:
    def answer(request: Request) -> None:
        given = {} if told is None else {"Content-Range": told}
        request.head(206, {"Content-Length": str(len(CONTENT)), **given})
        request.body(iter([CONTENT]))

    assert "gives another piece than the one that was asked for" in failed(answer)


def test_a_compressed_answer_is_refused() -> None:
    assert "sends it compressed" in failed(ranged(CONTENT, Content_Encoding="gzip"))
    assert read(ranged(CONTENT, Content_Encoding="Identity")).requests == 1


@pytest.mark.usefixtures("small_pieces")
def test_a_file_that_is_replaced_meanwhile() -> None:
    assert "it was replaced while it was read" in failed(in_turn(ranged(LONG), ranged(LONG + b"x")))


def head_with(headers: Mapping[str, str]) -> Answer:
    return lambda request: request.head(206, {"Content-Range": "bytes 0-99/100000", "Connection": "close", **headers})


def test_answers_that_break_off() -> None:
    def drop(request: Request) -> None:
        request.connection.shutdown(socket.SHUT_RDWR)

    def not_http(request: Request) -> None:
        request.wfile.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
        drop(request)

    assert "there is no connection to the server, or it broke off" in failed(drop)
    assert "broke off" in failed(head_with({"Content-Length": "100"}))
    assert "ended its answer early" in failed(head_with({}))
    assert "broke off" in failed(head_with({"Transfer-Encoding": "chunked"}))
    assert "broke off" in failed(not_http)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ModelError, match="there is no connection to the server") as caught:
        read_remote_header(f"http://127.0.0.1:{port}/m.gguf")
    assert caught.value.code == "download_failed"


def test_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_header, "_TIMEOUT_SECONDS", (0.2, 0.2))
    assert "no answer within 0.2 s" in failed(lambda request: request.pause(5.0))

    def begun(request: Request) -> None:
        head_with({"Content-Length": "100"})(request)
        request.pause(5.0)

    assert "broke off" in failed(begun)


def test_a_slow_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_header, "_DEADLINE_SECONDS", 0.3)

    def letters(request: Request, data: bytes) -> Iterator[bytes]:
        for value in itertools.cycle(data):
            request.pause(0.02)
            yield bytes([value])

    def slow_head(request: Request) -> None:
        request.body(letters(request, b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20))

    def slow_body(request: Request) -> None:
        head_with({"Content-Length": "100000"})(request)
        request.body(letters(request, CONTENT))

    for answer in (slow_head, slow_body):
        began = time.monotonic()
        with RangeServer({"/m.gguf": answer}) as server:
            with pytest.raises(ModelError, match=r"it took more than 0\.3 s; try again"):
                read_remote_header(f"{server.url}/m.gguf")
            assert time.monotonic() - began < 3.0
        assert_no_thread_stays()  # behind the server's end


def test_nothing_is_read_behind_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_header, "_DEADLINE_SECONDS", 0.2)

    def pieces(request: Request) -> Iterator[bytes]:
        while True:
            request.pause(0.02)
            yield bytes(65536)

    def steady(request: Request) -> None:
        head_with({"Content-Range": f"bytes 0-99/{HUGE_BYTES}"})(request)
        request.body(pieces(request))

    with RangeServer({"/m.gguf": steady}) as server:
        with pytest.raises(ModelError, match="it took more than"):
            read_remote_header(f"{server.url}/m.gguf")
        assert_no_thread_stays()  # while the server goes on


def assert_no_thread_stays() -> None:
    for thread in threading.enumerate():
        if thread.name == "llmbench-remote-header":
            thread.join(2.0)
            assert not thread.is_alive()


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        (f"http://me:{TOKEN}@127.0.0.1:1/m.gguf?signature={TOKEN}", MINE),
        ("http://127.0.0.1:1/m.gguf", {"Authorization": f"Bearer {TOKEN}\n"}),
        ("http://127.0.0.1:1/m.gguf", {"Authorization": f"Bearer {TOKEN}\u20ac"}),
        (f"http://127.0.0.1:x{TOKEN}/m.gguf".replace(TOKEN, f"1/?{TOKEN}#"), MINE),
        (f"ftp://me:{TOKEN}@127.0.0.1/m.gguf", MINE),
    ],
)
def test_no_message_tells_a_secret(url: str, headers: Mapping[str, str]) -> None:
    with pytest.raises(ModelError) as caught:
        read_remote_header(url, headers=headers)
    assert caught.value.code == "download_failed"
    assert TOKEN not in "".join(traceback.format_exception(caught.value)).replace(repr(url), "")
    assert TOKEN not in caught.value.message
