"""From pytest's configuration and two YAML files to a ``Suite``: everything that is checked before anything runs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.adapters import resume
from pytest_llmbench.adapters.baseline import read_check, refuse_itself
from pytest_llmbench.adapters.blocking import AskedDecisions, Decisions, OwnDecisions
from pytest_llmbench.adapters.channel import CHANNEL, Controller
from pytest_llmbench.adapters.device import HeldDevice
from pytest_llmbench.adapters.options import chosen, switched
from pytest_llmbench.adapters.registry import BackendRegistry, ProfileRegistry
from pytest_llmbench.adapters.sensing import Sensing
from pytest_llmbench.adapters.state import Suite
from pytest_llmbench.adapters.watching import Watches
from pytest_llmbench.core.blocking import Blocking
from pytest_llmbench.core.config import Config, Models, Section
from pytest_llmbench.core.matrix import (
    build_matrix,
    check_backends,
    check_variants,
    require_base_urls,
)
from pytest_llmbench.core.metrics import PROFILE_NAMES, SETTINGS_AMONG_THRESHOLDS
from pytest_llmbench.core.settings import FOUNDING_SETTINGS, settings_in_mode
from pytest_llmbench.core.thresholds import UnusableThreshold, check_limit, known_keys
from pytest_llmbench.core.use_cases import check_use_cases
from pytest_llmbench.core.validation import Loaded, keys_not_used_yet, resolve_path, split_settings, validate
from pytest_llmbench.core.yaml_source import YamlDocument, load_yaml, nearest
from pytest_llmbench.errors import ConfigError, RecordError
from pytest_llmbench.runtime.devices import DevicePool, device_count
from pytest_llmbench.runtime.modelstore.store import ModelStore
from pytest_llmbench.runtime.pool import ServerPool
from pytest_llmbench.runtime.run_folder import RunFolder, new_run_id
from pytest_llmbench.runtime.share import share_dir


def build_suite(pytest_config: pytest.Config) -> Suite:
    """Read and check everything.

    Raises:
        ConfigError: anything the user wrote that can not be used; one line per problem.
    """
    if sys.platform == "win32":
        raise ConfigError("pytest-llmbench does not run on Windows; use it inside WSL")
    rootdir = pytest_config.rootpath
    backends, profiles = BackendRegistry(), ProfileRegistry()
    pytest_config.hook.pytest_llmbench_register_backends(registry=backends)
    pytest_config.hook.pytest_llmbench_register_profiles(registry=profiles)

    config = _load(Config, _file(pytest_config, "config"), rootdir)
    models = _load(Models, _file(pytest_config, "models") or share_dir("configs") / "models.yaml", rootdir)
    mode = _chosen(pytest_config, "mode") or config.value.test_mode
    check_backends(config, list(backends))
    check_variants(config, backends.serving)
    _check_profiles(config, profiles)
    _check_thresholds(config, models, profiles)
    check_use_cases(config, profiles)
    settings = _settings(config, profiles, mode, rootdir)
    matrix = build_matrix(config, models, mode, backends.serving)
    require_base_urls(config, matrix)
    for index, model in enumerate(models.value.models):
        for quantization, source in model.source.items():
            if source.path is not None:
                resolve_path(source.path, rootdir, models.document, ("models", index, "source", quantization, "path"))

    worker = getattr(pytest_config, "workerinput", None)
    output = _output_dir(pytest_config, config, rootdir)
    announcements = _announcements(config, models, profiles)
    path = None
    if not worker and (run := resume.wanted(pytest_config, config.value)):
        path = resume.find(run, output, rootdir)
        if path is None:
            announcements.append("there is no run to resume yet; this one is new")
    folder = _run_folder(output, path, worker)
    controller = Controller(worker[CHANNEL]) if worker is not None else None
    suite = Suite(
        config=config.value,
        models=models.value,
        matrix=matrix,
        backends=backends,
        profiles=profiles,
        settings=settings,
        mode=mode,
        rootdir=rootdir,
        store=ModelStore(
            resolve_path(config.value.model_dir, rootdir, config.document, ("model_dir",)),
            rootdir,
            may_download=not switched(pytest_config, "no-download"),
        ),
        folder=folder,
        pool=ServerPool(),
        watches=Watches(config.value.limits),
        sensing=Sensing(enabled=config.value.measurement.telemetry),
        device=HeldDevice(_device_pool(pytest_config, config.value, folder.run_id, one_each=worker is not None)),
        log_file=(
            resolve_path(config.value.logging.file, rootdir, config.document, ("logging", "file"))
            if config.value.logging.file is not None
            else None
        ),
        sources=(config.document.name, models.document.name),
        announcements=announcements,
        controller=controller,
        sends_lines=bool(worker is not None and worker["llmbench_is_remote"]),
    )
    suite.baseline = read_check(pytest_config, output, lambda: suite.host, worker)
    if path is not None:
        _take_up(suite, path, anyway=switched(pytest_config, "resume-anyway"))
    if not switched(pytest_config, "no-blocking"):
        suite.decisions = _decisions(suite)
    return suite


def _take_up(suite: Suite, path: Path, *, anyway: bool) -> None:
    """Go on with an earlier run; nobody else may, from now on."""
    try:
        suite.folder.claim()
        suite.earlier = resume.read(path)
        if suite.baseline is not None:
            refuse_itself(suite.baseline, suite.earlier)
        resume.compare(suite.earlier, suite.description, anyway=anyway)
    except (RecordError, ConfigError) as exc:
        suite.folder.close()
        raise ConfigError(f"--llmbench-resume: {str(exc).removeprefix('--llmbench-resume: ')}") from exc


def _run_folder(output: Path, earlier: Path | None, worker: Mapping[str, Any] | None) -> RunFolder:
    if worker is not None:
        return RunFolder(Path(worker["llmbench_output_dir"] or output), worker["llmbench_run_id"], worker["workerid"])
    if earlier is not None:
        return RunFolder(earlier.parent, earlier.name)
    return RunFolder(output, new_run_id())


def count_devices(pytest_config: pytest.Config) -> int | None:
    """How many workers ``-n auto`` is worth: one per device. None where the configuration can not be read, yet."""
    if pytest_config.pluginmanager.is_blocked("llmbench") or not pytest_config.pluginmanager.hasplugin("llmbench"):
        return None
    try:
        config = _load(Config, _file(pytest_config, "config"), pytest_config.rootpath)
    except ConfigError:  # told in pytest_configure
        return None
    return device_count(config.value.devices)


def _device_pool(pytest_config: pytest.Config, config: Config, run_id: str, *, one_each: bool) -> DevicePool:
    when_busy = _chosen(pytest_config, "when-busy") or "wait"
    return DevicePool(
        config.devices, one_each=one_each, run_id=run_id, when_busy="fail" if when_busy == "fail" else "wait"
    )


def _decisions(suite: Suite) -> Decisions:
    if suite.controller is not None:
        return AskedDecisions(suite.controller)
    known = suite.earlier.finished.values() if suite.earlier is not None else ()
    return OwnDecisions(Blocking(suite.config.blocking), suite, known)


def _file(pytest_config: pytest.Config, name: str) -> Path | None:
    """The file of an option: from the command line (relative to where one stands), the ini file, or by default."""
    given = pytest_config.getoption(f"llmbench_{name}")
    if given is not None:
        return Path(pytest_config.invocation_params.dir, given)
    configured = pytest_config.getini(f"llmbench_{name}")
    if configured:
        ini = YamlDocument("the ini file", None)
        return resolve_path(str(configured), pytest_config.rootpath, ini, (f"llmbench_{name}",))
    default = pytest_config.rootpath / "configs" / f"{name}.yaml"
    try:
        return default if os.path.lexists(default) else None
    except OSError:
        return default  # reading it tells what is wrong


def _load(model: type[Any], path: Path | None, rootdir: Path) -> Loaded[Any]:
    if path is None:
        document = YamlDocument("(built-in defaults)", None)
        return Loaded(model(), document)
    name = os.path.relpath(path, rootdir) if path.is_relative_to(rootdir) else str(path)
    document = load_yaml(path, name)
    return Loaded(validate(model, document), document)


def _chosen(pytest_config: pytest.Config, option: str) -> str | None:
    try:
        return chosen(pytest_config, option)
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc


def _output_dir(pytest_config: pytest.Config, config: Loaded[Config], rootdir: Path) -> Path:
    given = pytest_config.getoption("llmbench_output")
    if given is not None:
        path = Path(pytest_config.invocation_params.dir, given)
    elif configured := pytest_config.getini("llmbench_output"):
        path = resolve_path(str(configured), rootdir, YamlDocument("the ini file", None), ("llmbench_output",))
    else:
        path = resolve_path(config.value.output.dir, rootdir, config.document, ("output", "dir"))
    try:
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        usable = existing.is_dir() and os.access(existing, os.W_OK)
    except OSError:  # a name too long, a folder that may not be entered
        usable = False
    if not usable:
        raise config.document.error(
            ("output", "dir"), f"{path} can not be written; choose another or --llmbench-output"
        )
    return path


def _check_profiles(config: Loaded[Config], profiles: ProfileRegistry) -> None:
    allowed = sorted({*PROFILE_NAMES, *profiles})
    named = [(("profiles", index), name) for index, name in enumerate(config.value.profiles)]
    named += [((part, name), name) for part in ("thresholds", "settings") for name in getattr(config.value, part)]
    for location, name in named:
        if name not in allowed:
            raise config.document.error(
                location, f"{name!r} is no profile{nearest(name, allowed)}; allowed: {', '.join(allowed)}"
            )


def _check_thresholds(config: Loaded[Config], models: Loaded[Models], profiles: ProfileRegistry) -> None:
    tables: list[tuple[YamlDocument, tuple[str | int, ...], Mapping[str, Mapping[str, Any]]]] = [
        (config.document, (), config.value.thresholds)
    ]
    tables += [(config.document, ("variants", i), v.thresholds) for i, v in enumerate(config.value.variants)]
    tables += [(models.document, ("models", i), m.thresholds) for i, m in enumerate(models.value.models)]
    names = sorted({*PROFILE_NAMES, *profiles})
    for document, where, table in tables:
        for profile, limits in table.items():
            if profile not in names:
                location = (*where, "thresholds", profile)
                raise document.error(location, f"{profile!r} is no profile{nearest(profile, names)}")
            keys = known_keys(profile, profiles.emitted(profile) if profile in profiles else ())
            for key, value in limits.items():
                if key in SETTINGS_AMONG_THRESHOLDS.get(profile, ()):
                    continue
                try:
                    check_limit(profile, key, value, keys)
                except UnusableThreshold as exc:
                    raise document.error((*where, "thresholds", profile, key), str(exc)) from exc


def _settings(config: Loaded[Config], profiles: ProfileRegistry, mode: str, rootdir: Path) -> dict[str, Any]:
    """Each profile's settings, validated by its own model, or by the founding one where it does not exist yet."""
    written = split_settings(config)
    shapes: dict[str, type[Any]] = {**FOUNDING_SETTINGS, **{name: p.settings_model for name, p in profiles.items()}}
    for name, table in written.items():
        if name in shapes and issubclass(shapes[name], Section):
            validate(shapes[name], config.document, ("settings", name), table)
    result = {}
    for name, profile in profiles.items():
        try:
            result[name] = profile.settings_model(**settings_in_mode(name, written.get(name, {}), mode))
        except ValueError as exc:  # a user's model; ours was checked above
            raise config.document.error(("settings", name), str(exc).replace("\n", "; ")) from exc
        check = getattr(profile, "check_settings", None)
        if check is not None and name in config.value.profiles:
            check(result[name], rootdir)
    return result


def _announcements(config: Loaded[Config], models: Loaded[Models], profiles: ProfileRegistry) -> list[str]:
    """What the user wrote that has no effect."""
    keys = [*keys_not_used_yet(config.value), *keys_not_used_yet(models.value)]
    written = config.value.model_fields_set
    if "profiles" in written:
        keys += [f"profiles: {name}" for name in config.value.profiles if name not in profiles]
    for part in ("thresholds", "settings"):
        keys += [f"{part}.{name}" for name in getattr(config.value, part) if name not in profiles]
    lines = [f"{key}: accepted, not used yet" for key in dict.fromkeys(map(_without_indices, keys))]
    selectable = {*models.value.quick_mode_quants, *models.value.full_mode_quants}
    for index, model in enumerate(models.value.models):
        for part in ("files", "served"):
            for name in getattr(model, part):
                if name not in selectable:
                    where = ("models", index, part, name)
                    suggestion = nearest(name, selectable)
                    lines.append(
                        models.document.complaint(where, f"in neither mode's quantizations{suggestion}; never run")
                    )
    return lines


def _without_indices(key: str) -> str:
    """``models[7].repo`` → ``models[].repo``: a hundred models make one announcement."""
    import re

    return re.sub(r"\[\d+\]", "[]", key)


def configure_logging(suite: Suite) -> Callable[[], None]:
    """Send this package's log to ``logging.file`` at ``logging.level``; returns how to undo it."""
    logger = logging.getLogger("pytest_llmbench")
    previous, handler = logger.level, None
    logger.setLevel(suite.config.logging.level)
    if suite.log_file is not None:
        handler = logging.FileHandler(suite.log_file, delay=True, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)

    def undo() -> None:
        logger.setLevel(previous)
        if handler is not None:
            logger.removeHandler(handler)
            handler.close()

    return undo
