"""Installed but unused it does nothing; one line in the root conftest.py switches a folder on."""

from __future__ import annotations

import pytest

from tests.plugin.bench import SWITCH, Bench

HEAVY = ("pydantic", "numpy", "scipy", "requests", "yaml", "rich", "psutil", "httptools", "filelock", "huggingface_hub")


def test_unused_in_an_unrelated_repository(pytester: pytest.Pytester) -> None:
    for name, text in {"configs/config.yaml": "their: own\n", "configs/models.yaml": "broken: [\n"}.items():
        path = pytester.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    pytester.makepyfile(
        """
        import sys

        def test_nothing_heavy_is_imported():
            assert "pytest_llmbench.plugin" in sys.modules
            ours = sorted(name for name in sys.modules if name.startswith("pytest_llmbench"))
            assert ours == [
                "pytest_llmbench", "pytest_llmbench.adapters", "pytest_llmbench.adapters.options",
                "pytest_llmbench.plugin",
            ]
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:benchmark", "-p", "no:anyio")
    result.assert_outcomes(passed=1)
    assert "llmbench:" not in result.stdout.str() + result.stderr.str()
    assert "accepted" not in result.stdout.str()
    made_by_pytester = {"stdout", "stderr", "__pycache__", "runpytest-0", "runpytest-current", "tmp-home"}
    assert {path.name for path in pytester.path.iterdir()} - made_by_pytester == {
        ".pytest_cache",
        "configs",
        "test_unused_in_an_unrelated_repository.py",
    }


def test_plugin_itself_imports_nothing_heavy(pytester: pytest.Pytester) -> None:
    script = pytester.makepyfile(
        look=f"""
        import sys
        import pytest
        before = set(sys.modules)
        import pytest_llmbench.plugin
        new = set(sys.modules) - before
        assert not [name for name in new if name.partition(".")[0] in {HEAVY!r}], new
        assert len(new) < 6, new
        """
    )
    assert pytester.runpython(script).ret == 0


def test_switched_off_by_name(bench: Bench) -> None:
    bench.write("test_ordinary.py", "def test_ordinary():\n    pass\n")
    bench.write("configs/broken.yaml", "")
    bench.config["unknown"] = 1
    bench.write("pytest.ini", "[pytest]\nstrict = true\nfilterwarnings = error\n")
    result = bench.run("-p", "no:llmbench")
    result.assert_outcomes(passed=1, deselected=1)
    assert not (bench.path / "results").exists()


def test_without_autoload_it_says_what_to_add(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    result = bench.run("suites/")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*add -p llmbench*"])
    assert bench.run("suites/", "-p", "llmbench").ret == pytest.ExitCode.OK


def test_ordinary_tests_beside_a_suite_leave_no_results(bench: Bench) -> None:
    bench.write("test_ordinary.py", "def test_ordinary():\n    pass\n")
    bench.run("test_ordinary.py").assert_outcomes(passed=1)
    assert not (bench.path / "results").exists()


def test_strict_mode_is_clean(bench: Bench) -> None:
    bench.write("pytest.ini", "[pytest]\nstrict = true\nfilterwarnings = error\n")
    assert bench.run("suites/").ret == pytest.ExitCode.OK


def test_defaults_run_without_any_file(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(SWITCH)
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.llmbench(profile="interactive")
        def test_it(llm):
            pass
        """
    )
    result = pytester.runpytest_inprocess("--collect-only", "-q")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*::test_it?SmolLM2-135M-Instruct-Q4_1?"])


def test_llm_without_the_marker_says_what_is_missing(bench: Bench) -> None:
    bench.write("suites/test_interactive.py", "def test_it(llm):\n    pass\n")
    result = bench.run("suites/")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*mark the test with @pytest.mark.llmbench*"])


def test_a_dry_run_without_a_suite_runs_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it():\n    raise SystemExit('it ran')\n")
    result = pytester.runpytest_subprocess("--llmbench-dry-run")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "no benchmark suite is switched on here" in result.stderr.str()
