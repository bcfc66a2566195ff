"""Charts: that they are SVG a strict page can hold, the same every time, and say what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
import pytest

from pytest_llmbench.core.recommendations import Point as FrontPoint
from pytest_llmbench.core.records import CellRecord, MetricValue, ModelFile, ThresholdResult
from pytest_llmbench.reports.charts import MOST_SERIES, Axis, Guide, Point, Row, Series, draw_points, draw_rows
from pytest_llmbench.reports.charts_of_models import (
    best_of_all,
    memory_by_size,
    quality_by_quantization,
    speed_by_size,
)
from pytest_llmbench.reports.charts_of_samples import distribution, load_by_context, rate_by_depth, temperature
from pytest_llmbench.reports.html_subjects import subjects
from tests.unit.factories import cell_record
from tests.unit.reports.runs import run_of

SERIES = [
    Series("one", [Point(1, 10, "first", 8, 12), Point(2, 20, "second", label="$x^2$ & <b>")], joined=True),
    Series("two", [Point(1.5, 5, "third")]),
]


def drawn(**changes: Any) -> str:
    return draw_points("c", "What it shows", Axis("across"), Axis("upwards"), SERIES, **changes).svg


def metric(value: float, *, low: float | None = None, high: float | None = None, n: int = 6) -> MetricValue:
    return MetricValue(value=value, unit="", n=n, ci_low=low, ci_high=high)


def cell(quantization: str, profile: str = "interactive", **changes: Any) -> CellRecord:
    nodeid = f"suites/test_{profile}.py::test_{profile}[{changes.get('model', 'tiny')}-{quantization}]"
    return cell_record(quantization=quantization, profile=profile, nodeid=nodeid, **changes)


def sized(quantization: str, gb: float, rate: float) -> CellRecord:
    metrics = {"decode_tokens_per_second": metric(rate), "peak_memory_gb": metric(gb * 1.2)}
    file = ModelFile(path="m.gguf", size_bytes=int(gb * 1e9), sha256=None)
    return cell(quantization, metrics=metrics, model_file=file)


def test_a_chart_is_a_flat_list_of_shapes_with_classes_for_colours() -> None:
    svg = ET.fromstring(drawn(guides=[Guide("limit", [(1, 15), (2, 15)])]))
    assert (svg.get("role"), svg.get("aria-label")) == ("img", "What it shows")
    parts = list(svg.iter())
    assert {part.tag for part in parts} == {"svg", "defs", "path", "use", "text", "title"}
    known = {"class", "d", "id", "href", "x", "y", "text-anchor", "viewBox", "role", "aria-label"}
    known |= {"stroke-width", "stroke-dasharray", "stroke-linejoin", "stroke-linecap"}
    assert {name for part in parts for name in part.attrib} <= known
    assert "#0000" not in drawn()


def test_each_marker_says_what_it_is() -> None:
    svg = ET.fromstring(drawn())
    said = [(use.get("class"), use.findtext("title")) for use in svg.iter("use")]
    assert said == [("f-s1", "first"), ("f-s1", "second"), ("f-s2", "third")]
    shapes = {path.get("id") for path in svg.iter("path") if path.get("id")}
    assert {use.get("href") for use in svg.iter("use")} == {f"#{name}" for name in shapes} == {"#c-p0", "#c-p1"}


def test_names_are_no_formulas_and_no_markup() -> None:
    assert "$x^2$ & <b>" in [text.text for text in ET.fromstring(drawn()).iter("text")]


def test_settings_of_the_user_change_nothing() -> None:
    before = drawn()
    with mpl.rc_context(
        {
            "axes.grid": True,
            "lines.linewidth": 9,
            "lines.solid_capstyle": "round",
            "svg.fonttype": "path",
            "axes.facecolor": "red",
        }
    ):
        assert drawn() == before
        assert mpl.rcParams["lines.linewidth"] == 9


def test_labels_do_not_lie_on_each_other() -> None:
    crowd = [Series("all", [Point(1 + place / 1000, 1, "tip", label="a name") for place in range(5)])]
    svg = ET.fromstring(draw_points("c", "Crowd", Axis("x"), Axis("y"), crowd).svg)
    places = [(text.get("x"), text.get("y")) for text in svg.iter("text") if text.get("class") == "name"]
    assert 1 <= len(places) == len(set(places)) < 5


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0])
def test_one_value_alone_has_a_place(value: float) -> None:
    row = draw_rows("c", "Rows", Axis("s"), [Row("one", [value], value, None, None, "tip")])
    point = draw_points("c", "Point", Axis("x"), Axis("y"), [Series("one", [Point(value, value, "tip")])])
    assert "nan" not in row.svg + point.svg


def test_speed_and_memory_over_the_size_of_the_file() -> None:
    measured = subjects([sized("Q2_K", 1, 80), sized("Q8_0", 4, 30)])
    speed, memory = speed_by_size(measured), memory_by_size(measured)
    assert speed.reading.startswith("Fastest: Q2_K with 80.0 tokens/s")
    assert speed.rows == [["tiny", "Q2_K", "1", "80.0 tokens/s"], ["tiny", "Q8_0", "4", "30.0 tokens/s"]]
    assert memory.drawing is not None
    assert "the file alone" in memory.drawing.svg
    assert [key[0] for key in memory.drawing.keys] == ["Q2_K", "Q8_0"]


def test_sizes_that_only_labels_tell() -> None:
    cells = [cell("Q4", model=f"m{size}", model_size=size, model_file=None) for size in ("1B", "70B", "unknown")]
    view = speed_by_size(subjects(cells))
    assert [row[2] for row in view.rows] == ["1", "70"]
    assert view.head[2] == "billion parameters"


def test_what_can_not_be_drawn_says_why() -> None:
    one = subjects([cell("Q4_1")])
    assert "Only one configuration was measured, tiny Q4_1: 71.2 tokens/s" in speed_by_size(one).reading
    assert quality_by_quantization(one).reading == "No quality cell was measured."
    assert load_by_context(one).reading == "No long_context cell was measured."
    assert distribution(one, "ttft_seconds").reading == "No interactive cell holds samples of ttft_seconds."
    assert "Fewer than two" in best_of_all([], one).reading


def test_quality_stands_in_the_order_of_bits() -> None:
    scores = {"Q8_0": 80.0, "Q2_K": 60.0, "Q4_K_M": 75.0}
    cells = [
        cell(name, "quality", metrics={"quality_score_percent": metric(score, low=score - 9, high=score + 9, n=128)})
        for name, score in scores.items()
    ]
    view = quality_by_quantization(subjects(cells))
    assert view.drawing is not None
    ticks = [t.text for t in ET.fromstring(view.drawing.svg).iter("text") if t.text in scores]
    assert ticks == ["Q2_K", "Q4_K_M", "Q8_0"]
    assert "Q8_0 with 80.0 % (71.0–89.0) of 128 questions" in view.reading


def test_more_models_than_can_be_told_apart() -> None:
    scores = [
        cell("Q4", "quality", model=f"m{place}", metrics={"quality_score_percent": metric(place)})
        for place in range(12)
    ]
    view = quality_by_quantization(subjects(scores))
    assert view.drawing is not None
    assert [key[0] for key in view.drawing.keys] == [f"m{place}" for place in range(4, 12)]
    assert f"{MOST_SERIES} of 12 are drawn." in view.note
    assert len(view.rows) == 12


def test_samples_in_rows_the_best_first() -> None:
    samples = {"decode_tokens_per_second": [[70.0, 71.0], [72.0]]}
    slow, fast = metric(10.0), metric(71.0, low=70, high=72)
    cells = [
        cell("Q8_0", samples={"decode_tokens_per_second": [[10.0]]}, metrics={"decode_tokens_per_second": slow}),
        cell("Q2_K", samples=samples, metrics={"decode_tokens_per_second": fast}),
    ]
    view = distribution(subjects(cells), "decode_tokens_per_second")
    assert [row[:4] for row in view.rows] == [["tiny Q2_K", "3", "70.0", "72.0"], ["tiny Q8_0", "1", "10.0", "10.0"]]
    assert view.drawing is not None
    assert len(list(ET.fromstring(view.drawing.svg).iter("use"))) == 4


def test_contexts_that_were_loaded() -> None:
    rows: list[dict[str, str | int | float | bool | None]] = [
        {"context_tokens": 4096, "load_seconds": 2.0, "decode_tokens_per_second": 40.0},
        {"context_tokens": 8192, "load_seconds": 5.0, "decode_tokens_per_second": 30.0},
        {"context_tokens": 16384, "load_seconds": None, "decode_tokens_per_second": None},
    ]
    measured = subjects([cell("Q4_1", "long_context", details={"sizes": rows})])
    assert [row[1] for row in load_by_context(measured).rows] == ["4,096", "8,192"]
    depth = rate_by_depth(measured)
    assert depth.reading == "Largest context: tiny Q4_1 at 8,192 tokens: 30.0 tokens/s."
    assert depth.drawing is not None
    assert {"4k", "8k"} <= {text.text for text in ET.fromstring(depth.drawing.svg).iter("text")}


def hot_cell() -> CellRecord:
    limit = ThresholdResult(
        key="max_temperature",
        metric="cpu_temperature_celsius",
        side="max",
        limit=85,
        critical=True,
        observed=81,
        ci_low=81,
        ci_high=81,
        n=1,
        verdict="pass",
        margin_percent=5,
    )
    return cell("Q4_1", "stress", metrics={"cpu_temperature_celsius": metric(81.0)}, thresholds=[limit])


def test_no_peak_of_temperature_is_lost(tmp_path: Path) -> None:
    record = hot_cell()
    with (tmp_path / "telemetry.jsonl").open("w", encoding="utf-8") as file:
        for second in range(3600):
            values = {"cpu_temperature_celsius": 81.0 if second == 1234 else 60.0}
            print(json.dumps({"cell": record.nodeid, "t_ns": second * 10**9, "values": values}), file=file)
        print(json.dumps({"cell": "another", "t_ns": 0, "values": {"cpu_temperature_celsius": 99.0}}), file=file)
    run = run_of(tmp_path, [record])
    view = temperature(run, subjects(run.records))
    assert view.reading == "Hottest: tiny Q4_1 after 20.6 min: 81.0 °C."
    assert view.drawing is not None
    assert "limit 85 °C" in view.drawing.svg
    assert len(view.drawing.svg) < 10_000
    assert "81.0" in {row[2] for row in view.rows}


def test_temperatures_that_are_gone(tmp_path: Path) -> None:
    run = run_of(tmp_path, [hot_cell()])
    assert "No temperature was recorded" in temperature(run, subjects(run.records)).reading


def test_the_front_names_its_points() -> None:
    points = [
        FrontPoint("tiny Q2_K", 40.0, 90.0, 1.0, on_front=True),
        FrontPoint("tiny Q8_0", 60.0, 50.0, 2.0, on_front=True),
        FrontPoint("tiny Q6_K", 50.0, 40.0, 3.0, on_front=False),
        FrontPoint("tiny Q5_K", None, 40.0, None, on_front=False),
    ]
    view = best_of_all(points, subjects([cell("Q2_K"), cell("Q8_0")]))
    assert view.reading == "Nothing measured beats these in quality, speed and memory at once: Q2_K, Q8_0."
    assert [row[0] for row in view.rows] == ["tiny Q2_K", "tiny Q8_0", "tiny Q6_K"]
    assert view.drawing is not None
    names = {text.text for text in ET.fromstring(view.drawing.svg).iter("text") if text.get("class") == "name"}
    assert names == {"Q2_K", "Q8_0"}


def test_without_quality_the_front_is_of_memory() -> None:
    points = [FrontPoint(f"m Q{place}", None, 10.0 * place, 1.0 * place, on_front=place == 1) for place in (1, 2)]
    assert best_of_all(points, []).title == "Memory and speed"
