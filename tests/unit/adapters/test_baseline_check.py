"""What a worker is given to compare with is what its controller knows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from pytest_llmbench.adapters.baseline import BaselineCheck, read_check, ship
from tests.unit.core.baselines import DESCRIPTION, measured, run

NOBODY_ASKED = SimpleNamespace(getoption=lambda _name: None, getini=lambda _name: None)


def test_a_worker_knows_how_much_loads_differed_in_the_stored_runs() -> None:
    of_one_load = {"decode_tokens_per_second": [[70.0] * 10], "ttft_seconds": [[0.1] * 10]}
    baseline = run("base", measured(samples=of_one_load))
    check = BaselineCheck(baseline, 5.0, [run(f"stored-{seed}", measured(seed=seed)) for seed in range(3)])
    node = SimpleNamespace(workerinput={})
    suite = SimpleNamespace(baseline=check, host=DESCRIPTION["host"])
    ship(node, cast(Any, suite))
    arrived = read_check(cast(Any, NOBODY_ASKED), Path(), lambda: suite.host, node.workerinput)
    assert arrived is not None
    slower = measured(samples={name: [[0.9 * s for s in loads[0]]] for name, loads in of_one_load.items()})
    found = [one.compare(slower, baseline.environment) for one in (check, arrived)]
    verdicts = [{m.metric: (m.verdict, m.p_value) for m in one.metrics} for one in found if one is not None]
    assert len(verdicts) == 2
    assert verdicts[0]["decode_tokens_per_second"][0] == "regressed"
    assert {name: verdict for name, (verdict, _) in verdicts[1].items()} == {
        name: verdict for name, (verdict, _) in verdicts[0].items()
    }


def test_what_a_baseline_file_knows_of_stored_runs_goes_along() -> None:
    from pytest_llmbench.core.baseline import BaselineSpread

    spread = BaselineSpread(
        profile="interactive",
        metric="ttft_seconds",
        host=DESCRIPTION["host"],
        log_sd=0.01,
        degrees=9,
        source="3 stored runs",
    )
    baseline = run("base", measured()).model_copy(update={"spreads": [spread]})
    node = SimpleNamespace(workerinput={})
    ship(node, cast(Any, SimpleNamespace(baseline=BaselineCheck(baseline, 5.0), host="another")))
    arrived = read_check(cast(Any, NOBODY_ASKED), Path(), lambda: "another", node.workerinput)
    assert arrived is not None
    assert arrived.baseline.spreads == [spread]
