import math
import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
import report_document
from hypothesis import given, settings
from hypothesis import strategies as st

from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Axis, Reading, format_value
from gnomon.report import words
from gnomon.report.figure import CELLS, POINTS, describe
from gnomon.report.scale import Scale
from gnomon.report.svg import draw, draw_matplotlib

mpl.use("Agg")
NS = "{http://www.w3.org/2000/svg}"


def scalar(value=17.3, error=1.4, **more):
    return Reading("sharpness", value, "", error=error, error_kind="sample", **more)


def parsed(svg):
    return ET.fromstring(svg)


def by_class(svg, css):
    return [element for element in parsed(svg).iter() if element.get("class") == css]


def dots(svg, css="mds"):
    """Where the points of a series are, from the path (the last, after the legend) that draws them as zero-length strokes."""
    return [tuple(map(float, place)) for element in by_class(svg, css)[-1:] for place in re.findall(r"M(-?[\d.]+) (-?[\d.]+)h0", element.get("d"))]


def test_the_axes_alone_decide_the_kind():
    names, numbers = Axis("layer", ("a", "b", "c")), Axis("width", (1.0, 2.0, 3.0))
    assert describe(scalar()).kind == "number"
    assert describe(Reading("v", [1, 2, 3], "", axes=(names,))).kind == "bars"
    assert describe(Reading("v", [1, 2, 3], "", axes=(numbers,))).kind == "line"
    assert describe(Reading("v", [1, 2, 3], "")).kind == "line"
    assert describe(Reading("v", np.eye(3), "", axes=(names, numbers))).kind == "heatmap"
    deep = describe(Reading("v", np.zeros((2, 3, 4)), "", axes=(Axis("kind", ("x", "y")), names, Axis("t", (1.0, 2.0, 3.0, 4.0)))))
    assert deep.kind == "heatmap"
    assert deep.series[0].values.shape == (6, 4)
    assert deep.axes[0].values[5] == "y · c"


def test_a_number_stands_where_its_value_is():
    svg = draw(describe([Reading.predicted("limit", 20.0, unit=""), scalar(17.3, 0.5)], relation="at_most", tolerance=0.0), width=340)
    (measured,) = dots(svg, "md")
    predicted = float(re.match(r"M([\d.]+)", by_class(svg, "pt")[0].get("d")).group(1))
    low, high = map(float, re.match(r"M([\d.]+) [\d.]+H([\d.]+)", by_class(svg, "ms")[0].get("d")).groups())
    assert low < measured[0] < high < predicted
    half = 0.5 * 1.959964
    assert (high - low) / (predicted - measured[0]) == pytest.approx(2 * half / 2.7, abs=0.02)
    allowed = by_class(svg, "ok")[0]
    assert float(allowed.get("x")) + float(allowed.get("width")) == pytest.approx(predicted, abs=0.2)


def test_a_line_keeps_the_proportions_of_its_values():
    x, y = np.array([1.0, 2.0, 4.0, 8.0]), np.array([3.0, -1.0, 4.0, 1.5])
    points = np.array(dots(draw(describe(Reading("v", y, "", axes=(Axis("t", tuple(x)),))))))
    assert np.corrcoef(points[:, 0], x)[0, 1] == pytest.approx(1, abs=1e-5)
    assert np.corrcoef(points[:, 1], y)[0, 1] == pytest.approx(-1, abs=1e-5)
    logarithmic = np.array(dots(draw(describe(Reading("v", y, "", axes=(Axis("t", tuple(x), scale="log"),))))))
    assert np.corrcoef(logarithmic[:, 0], np.log(x))[0, 1] == pytest.approx(1, abs=1e-5)


def test_bars_start_at_zero_and_are_as_long_as_their_values():
    values = np.array([1.0, 2.0, -0.5])
    svg = draw(describe(Reading("v", values, "", axes=(Axis("layer", ("a", "b", "c")),))))
    bars = by_class(svg, "mb")
    lengths = np.array([float(bar.get("width")) for bar in bars])
    assert lengths / lengths[0] == pytest.approx(np.abs(values), rel=0.01)
    assert float(bars[2].get("x")) + lengths[2] == pytest.approx(float(bars[0].get("x")), abs=0.2)


def test_an_open_interval_is_an_arrow_without_a_point():
    svg = draw(describe(scalar(900.0, 500.0, interval=(300.0, math.inf))), width=340)
    assert dots(svg, "md") == []
    assert len(by_class(svg, "ms")) == 2
    assert "> 300" in describe(scalar(900.0, 500.0, interval=(300.0, math.inf))).description


def test_an_exponent_is_drawn_as_a_slope_through_the_measured_points():
    predicted, measured = report_document.power_law()
    figure = describe([predicted, measured], relation="exponent", tolerance=0.1)
    assert figure.log
    x = np.log(measured.axes[0].values)
    assert np.polyfit(x, np.log(figure.series[0].values), 1)[0] == pytest.approx(-1.0)
    assert np.log(figure.series[0].values).mean() == pytest.approx(np.log(measured.value).mean())


@pytest.mark.parametrize("relation", ["order", "monotone"])
def test_a_prediction_of_order_has_no_place_on_the_axis(relation):
    axes = (Axis("layer", ("a", "b")),)
    figure = describe([Reading.predicted("v", [0.0, 1.0], unit="", axes=axes), Reading("v", [5.0, 9.0], "", axes=axes)], relation=relation)
    assert [series.predicted for series in figure.series] == [False]


def test_the_band_of_a_tolerance_replaces_the_bar_of_what_was_left_out():
    axes = (Axis("layer", ("a", "b")),)
    predicted = Reading.predicted("v", [1.0, 2.0], unit="", error=0.3, error_kind="truncation", axes=axes)
    figure = describe([predicted, Reading("v", [1.1, 2.1], "", axes=axes)], tolerance=0.3)
    assert (figure.series[0].low == figure.series[0].high).all()
    assert figure.allowed[0] == pytest.approx([0.7, 1.7])
    alone = describe([predicted, Reading("v", [1.1, 2.1], "", axes=axes)])
    assert alone.series[0].low == pytest.approx([0.7, 1.7])


def test_a_peak_survives_the_thinning_of_a_long_line():
    values = np.ones(5000)
    values[3217] = 50.0
    figure = describe(Reading("v", values, "", axes=(Axis("t", tuple(np.arange(5000.0))),)))
    assert len(figure.axes[0].values) == POINTS
    assert figure.series[0].values.max() == 50.0
    assert figure.axes[0].values[int(figure.series[0].values.argmax())] == 3217
    assert "5,000 values" in figure.description


def test_a_large_heat_map_keeps_its_mean():
    values = np.random.default_rng(0).standard_normal((192, 64))
    figure = describe(Reading("v", values, ""))
    assert figure.series[0].values.shape == (CELLS, CELLS)
    assert figure.series[0].values.mean() == pytest.approx(values.mean())


def test_marks_stand_at_the_elements_that_fail():
    predicted, measured = report_document.deep_rows()
    outcomes = ["holds"] * 50
    outcomes[31] = "fails"
    svg = draw(describe([predicted, measured], tolerance=0.06, elements=outcomes))
    (ring,) = by_class(svg, "ring")
    x = float(re.match(r"M([\d.]+)", ring.get("d")).group(1)) + 7
    assert x == pytest.approx(dots(svg)[31][0], abs=0.2)
    shaded, _ = sorted(by_class(svg, "no"), key=lambda part: -float(part.get("height")))
    ends = [(dots(svg)[a][0] + dots(svg)[a + 1][0]) / 2 for a in (30, 31)]
    assert [float(shaded.get("x")), float(shaded.get("x")) + float(shaded.get("width"))] == pytest.approx(ends, abs=0.3)
    few = draw(describe([Reading.predicted("v", 1.0, unit=""), Reading("v", [1.0, 3.0], "", axes=(Axis("layer", ("good", "bad")),))], tolerance=0.5, elements=["holds", "fails"]))
    assert [element.text for element in by_class(few, "b")] == ["bad"]
    assert any(element.text == "fails" for element in parsed(few).iter(f"{NS}text"))
    assert "Does not agree at bad" in few


@pytest.mark.parametrize("width", [340, 640])
def test_no_text_leaves_the_picture(width):
    for made in report_document.document()["rows"]:
        sides = [words.reading_of(made[key]) for key in ("predicted", "measured") if made[key]]
        svg = draw(describe(sides, title=made["title"], relation=made["relation"], tolerance=made["tolerance"], elements=made["elements"]), width=width)
        root = parsed(svg)
        height = float(root.get("height"))
        assert root.get("role") == "img"
        assert root.find(f"{NS}title").text == made["title"]
        for element in root.iter(f"{NS}text"):
            x, length, anchor = float(element.get("x")), 6.2 * len(element.text), element.get("text-anchor", "start")
            left = x - (length if anchor == "end" else length / 2 if anchor == "middle" else 0)
            assert left >= -6, (made["title"], element.text)
            assert left + length <= width + 6, (made["title"], element.text)
            assert 0 < float(element.get("y")) <= height


def test_names_are_escaped_and_controls_are_dropped():
    bad = '<script>"&\x1b[0m\ud800'
    svg = draw(describe(Reading(bad, [1.0, 2.0], "<u>", axes=(Axis("<i>", (bad, "ok")),)), title=bad))
    assert "<script>" not in svg
    assert "\x1b" not in svg
    assert parsed(svg).find(f"{NS}title").text.startswith('<script>"&')


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-300, 1e300], [math.inf, 1.0], [math.inf, math.inf], [5.0, 5.0], [-1e9, 1e-9], [1e-12, 3e-12]])
def test_extreme_values_are_drawn(values):
    for axis in (Axis("t", (1.0, 2.0)), Axis("layer", ("a", "b"))):
        for svg in (draw(describe(Reading("v", values, "", axes=(axis,)))), draw(describe(Reading("v", values[0], "")))):
            root = parsed(svg)
            assert "nan" not in svg
            assert "inf" not in svg.replace("infinite", "")
            assert float(root.get("height")) < 400
    parsed(draw(describe(Reading("v", [values], ""))))


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(InvalidInput, match="at least one"):
        describe([])
    with pytest.raises(InvalidInput, match="one shape"):
        describe([Reading.predicted("p", [1.0, 2.0], unit=""), Reading("m", [1.0, 2.0, 3.0], "")])


def test_matplotlib_draws_every_kind():
    import matplotlib.pyplot as plt

    rows = {row["title"][:20]: row for row in report_document.document()["rows"]}
    for start in ("Sharpness (largest H", "Gradient noise scale", "Spectral density of ", "Decay of the change ", "Variance of the acti", "Cosines between clas"):
        made = rows[start]
        sides = [words.reading_of(made[key]) for key in ("predicted", "measured") if made[key]]
        ax = draw_matplotlib(describe(sides, title=made["title"], relation=made["relation"], tolerance=made["tolerance"], elements=made["elements"]))
        assert ax.get_title(loc="left") == made["title"]
        ax.figure.canvas.draw()
        plt.close(ax.figure)
    figure, ax = plt.subplots()
    assert scalar().plot(ax) is ax
    assert ax.containers[0].lines[0].get_xdata()[0] == 17.3
    plt.close(figure)


finite = st.floats(-1e12, 1e12, allow_nan=False).filter(lambda v: v == 0 or abs(v) > 1e-12)


@settings(max_examples=300, deadline=None)
@given(finite, finite, st.booleans(), st.integers(2, 8))
def test_ticks_are_few_round_and_distinct(one, other, log, count):
    values = [abs(one) + 1e-9, abs(other) + 1e-9] if log else [one, other]
    scale = Scale.over(values, 0, 300, log=log)
    ticks = scale.ticks(count)
    labels = [label for _, label in ticks]
    assert 2 <= len(ticks) <= 3 * count + 3
    assert len(set(labels)) == len(labels)
    assert all(len(label) <= 14 for label in labels)
    places = [scale(value) for value, _ in ticks]
    assert places == sorted(places)
    assert all(-1e-6 <= place <= 300 + 1e-6 for place in places)


@settings(max_examples=500, deadline=None)
@given(finite, st.floats(0, 1e12, allow_nan=False))
def test_a_value_with_its_error_is_short_and_never_silly(value, error):
    text = words.typeset(format_value(value, error, (value - 2 * error, value + 2 * error)))
    assert len(text) <= 40
    assert not re.search(r"(?<![\d.])−0(\.0*)?(?![\d.])", text)
    assert not re.search(r"\d\.\d{13,}", text)
    assert not re.search(r"\de[-+]\d", text)


@pytest.mark.parametrize(
    ("value", "error", "interval", "text"),
    [
        (0.1 + 0.2, 0.0, None, "0.3"), (20.0, 3e-15, None, "20"), (9.0, 0.0, None, "9"), (-0.0004, 0.1, None, "0.00 ± 0.10"), (-0.0, 0.0, None, "0"), (60_000.0, 0.0, None, "60,000"),
        (1e-9, 1e-10, None, "1.00e-09 ± 1.0e-10"), (1e-6, 0.1, None, "0.00 ± 0.10"), (3.0, math.inf, (-math.inf, math.inf), "3.00, not determined"), (math.inf, 0.0, None, "∞"),
        (900.0, 1.0, (300.0, math.inf), "> 300"), (17.3, 1.4, None, "17.3 ± 1.4"),
    ],
)  # fmt: skip
def test_how_values_are_written(value, error, interval, text):
    assert format_value(value, error, interval or (value - 2 * error, value + 2 * error)) == text


@pytest.mark.parametrize(("value", "text"), [(0.1 + 0.2, "0.3"), (3e-7, "3e-07"), (4e7, "4e+07"), (0.0, "0"), (100.0, "100"), (0.0488, "0.0488"), (2 / 3, "0.667")])
def test_how_tolerances_are_written(value, text):
    assert words.short(value) == text


def test_elements_of_an_order_are_the_steps_between_neighbours():
    axes = (Axis("layer", ("a", "b", "c")),)
    reading, predicted = Reading("v", [1.0, 2.0, 3.0], "", axes=axes), Reading.predicted("v", [3.0, 1.0, 2.0], unit="", axes=axes)
    assert words.element_names(reading, "order", 2, predicted) == ["b to c", "c to a"]
    assert words.element_names(reading, "monotone", 2, predicted) == ["a to b", "b to c"]
    assert words.element_names(reading, "equal", 3, predicted) == ["a", "b", "c"]


def test_blocks_of_a_large_map_are_of_one_size_and_their_places_the_middle():
    """A plane stays one: 40 columns in blocks of two, not some of two and some of one, which would bend it."""
    x, y = np.linspace(0.5, 4.4, 40), np.linspace(0.25, 1.0, 30)
    reading = Reading("v", y[:, None] + 2 * x, "", axes=(Axis("y", tuple(map(float, y))), Axis("x", tuple(map(float, x)))))
    figure = describe(reading)
    across = np.array(figure.axes[1].values)
    assert len(across) <= CELLS
    assert np.allclose(np.diff(across), across[1] - across[0])
    assert np.allclose(figure.series[0].values, y[:, None] + 2 * across)
    axes = draw_matplotlib(figure)
    assert all(len(label.get_text()) <= 5 for label in axes.get_xticklabels())
