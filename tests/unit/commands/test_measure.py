"""``llmbench measure``: what it writes, prints and answers, on servers that behave and servers that do not."""

from __future__ import annotations

import errno
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.cli import main
from pytest_llmbench.commands.measure import Log
from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.runtime import host
from pytest_llmbench.runtime.replay import ReplayServer
from tests.servers.fake_openai import FakeOpenAI
from tests.servers.ollama_server import OllamaModel, OllamaServer
from tests.unit.backends.routes import Route, Routes

Output = pytest.CaptureFixture[str]
SECRET = "sk-do-not-tell-anybody"


def summary_of(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return data


def requests_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]


def measure(url: str, *arguments: str) -> tuple[int, Path]:
    """Status and folder of a load of three short requests, unless told otherwise."""
    usual = {"--requests": "3", "--tokens": "8", "--output": "out"}
    given = [word for name, value in usual.items() if name not in arguments for word in (name, value)]
    return main(["measure", url, *given, *arguments]), Path("out")


def refused(capsys: Output, *arguments: str) -> str:
    """The message of a load that can not be."""
    status, folder = measure(*arguments)
    assert status == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert not (folder / "summary.json").exists()
    last = captured.err.splitlines()[-1]
    assert last.startswith("llmbench: ")
    return last


def chat(tokens: int = 8, prompt_tokens: int | None = 40, model: str = "m") -> bytes:
    """A streamed answer that counts its tokens."""
    events: list[dict[str, Any]] = [{"model": model, "choices": [{"delta": {"content": "a"}}]} for _ in range(tokens)]
    events.append({"model": model, "choices": [{"delta": {}, "finish_reason": "length"}]})
    usage = {"completion_tokens": tokens, "prompt_tokens": prompt_tokens}
    events.append({"model": model, "choices": [], "usage": usage})
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def openai(answer: Callable[[dict[str, Any]], tuple[int, Any]] | None = None) -> dict[str, Route]:
    """Routes of a server with one model."""
    return {
        "GET /v1/models": (200, {"data": [{"id": "m"}]}),
        "POST /v1/chat/completions": answer or (lambda body: (200, chat(body["max_tokens"]))),
    }


@pytest.mark.usefixtures("here")
class TestALoad:
    def test_writes_every_request_and_a_summary(self, replay: ReplayServer) -> None:
        status, folder = measure(replay.url, "--requests", "8", "--streams", "4")
        assert status == 0
        requests = requests_of(folder)
        assert [request["phase"] for request in requests] == ["warmup"] + ["sample"] * 8
        assert {request["cell"] for request in requests} == {None}
        assert all(request["ok"] and not request["flags"] for request in requests)
        assert sorted(request["index"] for request in requests[1:]) == list(range(8))
        prompts = [request["params"]["messages"][0]["content"] for request in requests]
        assert len({prompt[:11] for prompt in prompts}) == 9
        summary = summary_of(folder)
        assert (summary["finished"], summary["succeeded"], summary["failed"]) == (8, 8, 0)
        assert summary["ttft_seconds"]["n"] == 8
        assert 0.01 <= summary["ttft_seconds"]["median"]["value"] < 0.5
        assert summary["decode_tokens_per_second"]["median"]["value"] < 600  # one each 2 ms
        assert summary["output_tokens"] == 64
        assert summary["tokens_per_chunk"] == 1.0
        assert summary["chunk_gap_ms"]["n"] == 56
        assert summary["ttft_from_schedule_seconds"] is None
        assert summary["server"] == {
            "url": replay.url,
            "kind": "OpenAI",
            "version": None,
            "protocol": "openai_chat",
            "model": "replay",
        }
        assert summary["client"]["software"]["pytest-llmbench"]

    def test_the_truth_agrees(self, replay: ReplayServer) -> None:
        replay.reset()
        measure(replay.url)
        truths = {truth.id: truth for truth in replay.truth()}
        for request in requests_of(Path("out")):
            truth = truths[request["response_id"]]
            assert request["output_tokens"] == truth.written == 8
            assert truth.ttft_seconds is not None
            assert request["ttft_seconds"] == pytest.approx(truth.ttft_seconds, abs=0.2)

    @pytest.mark.parametrize("protocol", ["llama_cpp", "openai_chat", "openai_completions"])
    def test_each_protocol(self, replay: ReplayServer, protocol: str) -> None:
        status, folder = measure(replay.url, "--protocol", protocol)
        assert status == 0
        assert {request["protocol"] for request in requests_of(folder)} == {protocol}

    def test_at_a_rate(self, replay: ReplayServer) -> None:
        status, folder = measure(replay.url, "--rate", "100", "--requests", "10")
        assert status == 0
        scheduled = [request["t_scheduled_ns"] for request in requests_of(folder)[1:]]
        scheduled.sort()
        assert [b - a for a, b in pairwise(scheduled)] == pytest.approx([10_000_000] * 9, abs=2)
        summary = summary_of(folder)
        assert summary["ttft_from_schedule_seconds"]["n"] == 10
        assert summary["load"] == {
            "streams": None,
            "requests": 10,
            "tokens": 8,
            "prompt_tokens": None,
            "rate_per_second": 100.0,
            "arrivals": "constant",
            "seed": None,
            "timeout_seconds": None,
        }

    def test_the_same_seed_comes_at_the_same_times(self, replay: ReplayServer) -> None:
        def intervals(name: str) -> list[int]:
            arguments = ("--rate", "200", "--arrivals", "poisson", "--seed", "7", "--output", name)
            assert measure(replay.url, *arguments)[0] == 0
            times = sorted(request["t_scheduled_ns"] for request in requests_of(Path(name))[1:])
            return [time - times[0] for time in times]

        first = intervals("first")
        assert intervals("second") == pytest.approx(first, abs=2)
        assert len(set(first)) == 3

    def test_a_table_for_people(self, replay: ReplayServer, capsys: Output) -> None:
        measure(replay.url, "--requests", "7")
        captured = capsys.readouterr()
        assert f"replay at {replay.url} (OpenAI, openai_chat)" in captured.out
        assert "7 requests, 7 succeeded, 0 failed" in captured.out
        row = next(line for line in captured.out.splitlines() if line.startswith("time to first token"))
        assert row.split()[4:6] == ["ms", "7"]
        assert row.split()[-3:] == ["–", "–", "–"]
        assert "p90 36, p95 72, p99 368" in captured.out
        assert "every request: out/requests.jsonl" in captured.out
        assert "7 requests, 1 at a time, 8 tokens each" in captured.err

    def test_json_for_scripts(self, replay: ReplayServer, capsys: Output) -> None:
        measure(replay.url, "--json")
        assert json.loads(capsys.readouterr().out) == summary_of(Path("out"))

    def test_a_folder_of_its_own_by_default(self, replay: ReplayServer) -> None:
        for _ in range(2):
            assert main(["measure", replay.url, "--requests", "1", "--tokens", "2"]) == 0
        assert len(list(Path("results").glob("measure-*/summary.json"))) == 2

    def test_nothing_is_overwritten(self, replay: ReplayServer, capsys: Output) -> None:
        assert measure(replay.url)[0] == 0
        before = {path: path.read_bytes() for path in Path("out").iterdir()}
        assert measure(replay.url)[0] == 2
        assert "holds a load already" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in Path("out").iterdir()} == before

    def test_prompts_of_a_length(self, replay: ReplayServer) -> None:
        status, folder = measure(replay.url, "--prompt-tokens", "200")
        assert status == 0
        assert summary_of(folder)["prompt_tokens"] == {
            "asked": 200,
            "expected": 200,
            "at_least": False,
            "counted_min": 200,
            "counted_max": 200,
        }

    def test_another_benchmark_is_running(self, replay: ReplayServer, capsys: Output) -> None:
        with host.device_lock().acquire():
            assert measure(replay.url)[0] == 0
        assert "disturb each other" in capsys.readouterr().err
        assert any("disturb" in note for note in summary_of(Path("out"))["notes"])

    def test_it_keeps_other_runs_from_measuring(self, replay: ReplayServer, monkeypatch: pytest.MonkeyPatch) -> None:
        held = []
        original = Log.sample

        def sample(log: Log, record: RequestRecord) -> None:
            lock = host.device_lock()
            held.append(not _free(lock))
            original(log, record)

        monkeypatch.setattr(Log, "sample", sample)
        assert measure(replay.url)[0] == 0
        assert held == [True] * 3
        assert _free(host.device_lock())


def _free(lock: Any) -> bool:
    try:
        lock.acquire(timeout=0)
    except TimeoutError:
        return False
    lock.release()
    return True


@pytest.mark.usefixtures("here")
class TestFindingOut:
    def test_ollama(self) -> None:
        with OllamaServer({"tiny": OllamaModel()}) as server:
            status, folder = measure(server.url)
        assert status == 0
        server_info = summary_of(folder)["server"]
        assert (server_info["kind"], server_info["protocol"], server_info["model"]) == (
            "Ollama",
            "ollama_generate",
            "tiny:latest",
        )

    def test_llama_cpp_by_its_properties(self) -> None:
        routes: dict[str, Route] = {
            "GET /props": (200, {"default_generation_settings": {}, "build_info": "b1"}),
            "GET /v1/models": (200, {"data": [{"id": "m"}]}),
            "POST /completion": lambda body: (200, _completion(body["n_predict"])),
        }
        with Routes(routes) as server:
            status, folder = measure(server.url)
            sent = [body for _, path, body in server.requests if path == "/completion"]
        assert status == 0
        assert all(body["ignore_eos"] is True and body["cache_prompt"] is False for body in sent)
        assert summary_of(folder)["server"]["version"] == "b1"

    def test_a_router_is_asked_by_model(self) -> None:
        props = (200, {"default_generation_settings": {}, "role": "router"})
        with Routes({**openai(), "GET /props": props}) as server:
            status, folder = measure(server.url)
        assert (status, summary_of(folder)["server"]["protocol"]) == (0, "openai_chat")

    @pytest.mark.parametrize("owner", ["vllm", "sglang", "somebody"])
    def test_ignore_eos_only_where_it_is_known(self, owner: str) -> None:
        models = (200, {"data": [{"id": "m", "owned_by": owner}]})
        with Routes({**openai(), "GET /v1/models": models}) as server:
            assert measure(server.url)[0] == 0
            sent = [body for method, _, body in server.requests if method == "POST" and "messages" in body]
        assert {"ignore_eos" in body for body in sent} == {owner != "somebody"}

    def test_with_v1_behind_it(self, replay: ReplayServer) -> None:
        assert measure(replay.url + "/v1/")[0] == 0

    def test_several_models(self, capsys: Output) -> None:
        with FakeOpenAI(models=("one", "two")) as server:
            assert "serves several models; choose with --model: one, two" in refused(capsys, server.url)
            assert measure(server.url, "--model", "two")[0] == 0
            assert {request["model"] for request in server.requests} == {"two"}

    def test_a_model_that_is_not_there(self, capsys: Output) -> None:
        with FakeOpenAI(models=("qwen",)) as server:
            assert "does not serve 'qwem'" in refused(capsys, server.url, "--model", "qwem")

    def test_a_server_without_a_list(self) -> None:
        routes = openai()
        del routes["GET /v1/models"]
        with Routes(routes) as server:
            assert measure(server.url, "--model", "anything")[0] == 0

    def test_a_closed_port(self, capsys: Output) -> None:
        with Routes({}) as server:
            url = server.url
        assert "nothing listens there" in refused(capsys, url)

    def test_a_web_server(self, capsys: Output) -> None:
        page = "<html>hello</html>"
        with Routes({f"GET {path}": (200, page) for path in ("/props", "/api/version", "/v1/models")}) as server:
            assert "the answer is not JSON" in refused(capsys, server.url)

    def test_a_server_that_is_still_loading(self, capsys: Output) -> None:
        with Routes({"GET /props": (503, {"error": {"message": "Loading model"}})}) as server:
            assert "Loading model" in refused(capsys, server.url)


def _completion(tokens: int) -> bytes:
    events: list[dict[str, Any]] = [{"content": "a", "stop": False}] * tokens
    timings = {"cache_n": 0, "predicted_n": tokens}
    events = [
        *events,
        {"content": "", "stop": True, "stop_type": "limit", "tokens_evaluated": 40, "timings": timings, "model": "m"},
    ]
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


@pytest.mark.usefixtures("here")
class TestKeys:
    def test_is_sent_and_never_told(self, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
        monkeypatch.setenv("SERVER_KEY", SECRET)
        with Routes(openai(), key=SECRET) as server:
            status, folder = measure(server.url, "--api-key-env", "SERVER_KEY")
        captured = capsys.readouterr()
        assert status == 0
        written = "".join(path.read_text() for path in folder.iterdir())
        assert SECRET not in written + captured.out + captured.err

    def test_a_wrong_one(self, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
        monkeypatch.setenv("SERVER_KEY", SECRET)
        with Routes(openai(), key="another") as server:
            message = refused(capsys, server.url, "--api-key-env", "SERVER_KEY")
        assert "refuses the key" in message
        assert SECRET not in message

    def test_none_where_one_is_needed(self, capsys: Output) -> None:
        with Routes(openai(), key="another") as server:
            assert "--api-key-env" in refused(capsys, server.url)

    def test_a_variable_that_is_not_set(self, capsys: Output) -> None:
        assert measure("http://127.0.0.1:9", "--api-key-env", "NOT_SET_ANYWHERE")[0] == 2
        assert "NOT_SET_ANYWHERE" in capsys.readouterr().err


@pytest.mark.usefixtures("here")
class TestWhatGoesWrong:
    def answering(self, answers: Iterator[tuple[int, Any]]) -> Routes:
        return Routes(openai(lambda _: next(answers)))

    def test_failures_are_counted_by_cause(self, capsys: Output) -> None:
        busy = (503, {"error": {"message": "come back later"}})
        with self.answering(iter([(200, chat()), (200, chat()), busy, busy, (500, {"error": "oops"})])) as server:
            status, folder = measure(server.url, "--requests", "4")
        assert status == 1
        summary = summary_of(folder)
        assert (summary["succeeded"], summary["failed"]) == (1, 3)
        assert {code: failure["count"] for code, failure in summary["failures"].items()} == {
            "server_busy": 2,
            "http_error": 1,
        }
        assert "2 × server_busy: the server answered HTTP 503: come back later" in capsys.readouterr().out
        assert summary["ttft_seconds"]["n"] == 1

    def test_all_fail(self, capsys: Output) -> None:
        with self.answering(iter([(200, chat()), *[(500, {"error": "oops"})] * 3])) as server:
            status, folder = measure(server.url)
        assert status == 1
        assert summary_of(folder)["ttft_seconds"] is None
        assert summary_of(folder)["output_tokens_per_second"] is None
        assert "3 × http_error" in capsys.readouterr().out

    def test_the_warm_up_fails(self, capsys: Output) -> None:
        with self.answering(iter([(500, {"error": "oops"})])) as server:
            assert "the warm-up request failed: the server answered HTTP 500: oops" in refused(capsys, server.url)
        assert [request["phase"] for request in requests_of(Path("out"))] == ["warmup"]

    def test_a_prompt_that_is_cut_is_a_failure(self) -> None:
        counts = iter([100, 100, 100, 64, 100])
        with Routes(openai(lambda body: (200, chat(body["max_tokens"], next(counts))))) as server:
            status, folder = measure(server.url, "--prompt-tokens", "100")
        assert status == 1
        cut = requests_of(folder)[-2]
        assert (cut["ok"], cut["error"], cut["usable"]) == (False, "prompt_truncated", False)
        assert cut["error_message"].startswith("the server read 64 tokens of a prompt of 100")
        summary = summary_of(folder)
        assert summary["failures"]["prompt_truncated"]["count"] == 1
        assert summary["doubts"] == ["prompt_truncated"]

    def test_a_server_that_cuts_every_prompt(self, capsys: Output) -> None:
        with OllamaServer({"tiny": OllamaModel()}, context_length=256) as server:
            assert "it cuts prompts" in refused(capsys, server.url, "--prompt-tokens", "1000")

    def test_short_answers_have_no_rate(self, capsys: Output) -> None:
        with Routes(openai(lambda _: (200, chat(5)))) as server:
            status, folder = measure(server.url)
        assert status == 0
        summary = summary_of(folder)
        assert summary["flags"] == {"short_answer": 3}
        assert summary["decode_tokens_per_second"] is None
        assert summary["ttft_seconds"]["n"] == 3
        assert "3 requests with short_answer" in capsys.readouterr().out

    def test_another_model_answers_later(self) -> None:
        answers = [(200, chat())] * 3 + [(200, chat(model="other"))]
        with self.answering(iter(answers)) as server:
            status, folder = measure(server.url)
        assert status == 0
        assert summary_of(folder)["flags"] == {"another_model_answered": 1}
        assert summary_of(folder)["ttft_seconds"]["n"] == 2
        assert requests_of(folder)[-1]["usable"] is False

    def test_nobody_counts_the_tokens(self) -> None:
        uncounted = chat().replace(b'"usage": {"completion_tokens": 8, "prompt_tokens": 40}', b'"x": 0')
        with Routes(openai(lambda _: (200, uncounted))) as server:
            status, folder = measure(server.url)
        summary = summary_of(folder)
        assert status == 0
        assert summary["flags"] == {"tokens_not_counted": 3}
        assert summary["output_tokens_per_second"] is None
        assert summary["prompt_tokens"]["counted_min"] is None

    def test_a_cache_that_answers(self) -> None:
        with FakeOpenAI(fault={"*": "cached"}) as server:
            status, folder = measure(server.url)
        assert status == 0
        assert summary_of(folder)["flags"]["prompt_cache_hit"] == 3
        assert summary_of(folder)["ttft_seconds"] is None

    def test_patience_ends(self) -> None:
        with ReplayServer(ttft_ms=10, gap_ms=300) as server:
            assert measure(server.url, "--timeout", "0.8", "--tokens", "1")[0] == 0
            assert measure(server.url, "--timeout", "0.8", "--tokens", "20", "--output", "slow")[0] == 1
        assert requests_of(Path("slow"))[0]["error"] == "request_timeout"
        assert not (Path("slow") / "summary.json").exists()

    def test_words_of_a_server_do_not_reach_the_terminal_raw(self, capsys: Output) -> None:
        hostile = (500, {"error": {"message": "\x1b[2Jgone [red]"}})
        with self.answering(iter([(200, chat()), hostile, hostile, hostile])) as server:
            measure(server.url)
        printed = capsys.readouterr().out
        assert "\x1b" not in printed
        assert "\\x1b[2Jgone [red]" in printed

    def test_a_full_disk(self, monkeypatch: pytest.MonkeyPatch, capsys: Output, replay: ReplayServer) -> None:
        written = []

        def write(log: Log, record: RequestRecord) -> None:
            written.append(record)
            if len(written) == 4:
                log._file.close()
                log._file = Full()  # type: ignore[assignment]
            original(log, record)

        original = Log._write
        monkeypatch.setattr(Log, "_write", write)
        status, folder = measure(replay.url, "--requests", "50")
        captured = capsys.readouterr()
        assert status == 1
        assert captured.err.splitlines()[-1].startswith(
            "llmbench: out/requests.jsonl can not be written: No space left"
        )
        assert "2 requests, 2 succeeded" in captured.out
        assert "stopped early: 50 were asked for" in captured.out
        assert summary_of(folder)["interrupted"] is True

    def test_a_folder_that_can_not_be(self, replay: ReplayServer, capsys: Output) -> None:
        Path("file").write_text("")
        assert measure(replay.url, "--output", "file/below")[0] == 1
        assert "can not be written: Not a directory" in capsys.readouterr().err


class Full:
    """A file on a disk without space."""

    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        pass


class TestAsAProcess:
    def start(self, folder: Path, url: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pytest_llmbench.cli", "measure", url, "--output", "out", *arguments]
        # A background job of a shell ignores SIGINT and hands that on; a handler of ours is the default in the child.
        previous = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return subprocess.Popen(
                command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
            )
        finally:
            signal.signal(signal.SIGINT, previous)

    def test_interrupted_it_keeps_what_it_has(self, tmp_path: Path, replay: ReplayServer) -> None:
        process = self.start(tmp_path, replay.url, "--requests", "100000", "--tokens", "4", "--streams", "2")
        file = tmp_path / "out" / "requests.jsonl"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (not file.exists() or file.read_bytes().count(b"\n") < 10):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert "Traceback" not in errors
        assert "stopped early: 100000 were asked for" in output
        summary = summary_of(tmp_path / "out")
        assert summary["interrupted"] is True
        assert 9 <= summary["finished"] == len(requests_of(tmp_path / "out")) - 1

    def test_interrupted_before_the_first_request(self, tmp_path: Path) -> None:
        with ReplayServer(ttft_ms=60_000) as server:
            process = self.start(tmp_path, server.url)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and not server.truth():
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
        assert (process.returncode, output) == (130, "")
        assert errors == "llmbench: stopped\n"

    def test_a_disk_that_ends_in_the_middle_of_a_line(self, tmp_path: Path, replay: ReplayServer) -> None:
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

        process = self.start(tmp_path, replay.url, "--requests", "500", "--tokens", "4", preexec_fn=limit)
        output, errors = process.communicate(timeout=100)
        assert process.returncode == 1
        assert errors.splitlines()[-1].startswith("llmbench: out/requests.jsonl can not be written")
        assert "Traceback" not in errors
        assert "stopped early" in output
        raw = (tmp_path / "out" / "requests.jsonl").read_bytes()
        assert len(raw) == 20_000
        assert summary_of(tmp_path / "out")["finished"] == raw.count(b"\n") - 1


@pytest.mark.usefixtures("here")
class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["ftp://x"], "is not an address"),
            (["127.0.0.1:8080"], "is not an address"),
            (["http://user:secret@host"], "must not hold a password"),
            (["http://127.0.0.1:9", "--rate", "2", "--streams", "2"], "contradict"),
            (["http://127.0.0.1:9", "--seed", "2"], "--rate"),
            (["http://127.0.0.1:9", "--arrivals", "poisson"], "--rate"),
            (["http://127.0.0.1:9", "--rate", "2", "--seed", "2"], "--arrivals poisson"),
        ],
    )
    def test_is_explained(self, arguments: list[str], told: str, capsys: Output) -> None:
        assert main(["measure", *arguments]) == 2
        message = capsys.readouterr().err
        assert told in message
        assert message.count("\n") == 1
        assert "secret" not in message

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--streams", "0"],
            ["--requests", "-1"],
            ["--tokens", "x"],
            ["--prompt-tokens", "1.5"],
            ["--rate", "0"],
            ["--rate", "inf"],
            ["--rate", "nan"],
            ["--timeout", "-2"],
            ["--protocol", "grpc"],
        ],
        ids=" ".join,
    )
    def test_numbers_that_are_none(self, arguments: list[str], capsys: Output) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["measure", "http://127.0.0.1:9", *arguments])
        assert ended.value.code == 2
        assert arguments[0] in capsys.readouterr().err.splitlines()[-1]
