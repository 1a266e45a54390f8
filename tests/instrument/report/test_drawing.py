"""Scales, heat map and diffs by themselves: numbers in, geometry and pixels out."""

import base64
import io
import math
from dataclasses import replace

import pytest

from instrument.layer_norms import LayerTable
from instrument.report import heatmap
from instrument.report.fixes import Fixes, Hunk
from instrument.report.scales import Scale, core, fitting
from tests.instrument.report.recorded import event, layers, recording_of, steps


@pytest.mark.parametrize(
    ("values", "kind"),
    [([1.0, 2.0, 3.0], "linear"), ([1e-3, 1.0], "log"), ([0.0, 1e-3, 1.0], "log"), ([-1.0, 2.0], "linear"), ([-1e6, 1.0, 2.0, 3.0], "symlog")],
)
def test_the_axis_fits_the_values(values, kind):
    scale = fitting(values)
    assert scale.kind == kind
    places = [scale(v) for v in sorted(values)]
    assert places == sorted(places)
    assert all(0.0 <= place <= 1.0 for place in places)
    if kind != "log":
        assert len(set(places)) == len(values), "different values are at different places"


def test_a_gradient_norm_is_on_a_logarithmic_axis_although_it_hardly_moves():
    assert fitting([1.0, 1.5], logarithmic=True).kind == "log"


def test_one_peak_does_not_flatten_the_rest():
    """The control: on an axis that holds the peak, the ordinary values are one line."""
    ordinary = [0.1 * 1.02**i for i in range(100)]
    values = [*ordinary, 1e35]
    naive = Scale("log", min(values), max(values))
    assert naive(ordinary[-1]) - naive(ordinary[0]) < 0.03
    scale = fitting(values)
    assert scale(ordinary[-1]) - scale(ordinary[0]) > 0.3
    assert scale(1e35) == 1.0


def test_the_core_of_values_without_peaks_is_all_of_them():
    values = [10.0 ** (i / 10) for i in range(-20, 21)]
    assert core(values) == (values[0], values[-1])


@pytest.mark.parametrize(
    "scale",
    [Scale("linear", -3.0, 7.0), Scale("log", 1e-38, 1e38), Scale("log", 0.7, 1.4), Scale("symlog", -1e9, 1e3, 1e-2), Scale("linear", 0.0, 1e-12)],
)
def test_ticks_lie_on_the_axis_in_order_and_are_few(scale):
    ticks = scale.ticks(5)
    assert 1 <= len(ticks) <= 7
    assert [t.at for t in ticks] == sorted({t.at for t in ticks})
    assert all(0.0 <= t.at <= 1.0 for t in ticks)
    for tick in ticks:
        assert scale(float(tick.label)) == pytest.approx(tick.at, abs=0.02), "the label is the value at that place"


def test_extreme_ranges_do_not_overflow():
    for values in ([1e-308, 1e308], [5e-324, 1.0], [-1e308, 1e308], [0.0], [0.0, 0.0], [1e308, 1e308]):
        scale = fitting(values)
        assert all(0.0 <= scale(v) <= 1.0 for v in values)
        assert scale.ticks()


def pixels(found):
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(found.image.partition(",")[2])))
    return picture.size, picture.convert("RGBA")


def test_the_picture_is_a_png_that_another_reader_reads():
    pytest.importorskip("PIL", reason="pillow comes with matplotlib: pip install 'latent-drift[plots]'")
    found = heatmap.build(layers())
    size, picture = pixels(found)
    assert size == (4, 3)
    assert picture.getpixel((2, 0)) == (0xE5, 0x00, 0x7A, 255), "nan"
    assert picture.getpixel((0, 1)) == (0x8A, 0x8F, 0x98, 255), "exactly 0"
    assert picture.getpixel((0, 2))[3] == 0, "no gradient"
    assert picture.getpixel((2, 2)) == (0xFD, 0xE7, 0x25, 255), "the largest"
    assert picture.getpixel((1, 2)) == (0x44, 0x01, 0x54, 255), "the smallest"
    assert (found.bad, found.zero) == (1, 1)


def test_many_parameters_are_combined_by_module_until_they_can_be_read():
    names = tuple(f"blocks.{b}.{part}.{kind}" for b in range(40) for part in ("norm", "first", "second") for kind in ("weight", "bias"))
    norms = tuple((3.0, 0.0) if name.endswith("weight") else (4.0, math.nan) for name in names)
    found = heatmap.build(LayerTable((0, 5), names, norms))
    assert found.combined
    assert len(found.rows) == 40
    assert found.rows[0] == "blocks.0"
    assert found.cells[0][0] == pytest.approx(math.sqrt(3 * (9 + 16))), "the norm of the module's gradients taken as one"
    assert found.cells[0][1] == "nan"
    flat = heatmap.build(LayerTable((0,), tuple(f"t{i}" for i in range(300)), ((1.0,),) * 300))
    assert len(flat.rows) == heatmap.MOST_ROWS
    assert flat.rows[-1] == "221 more"


def test_a_large_job_is_drawn_within_bounds_and_with_everything_that_was_done():
    from instrument.report import timeline

    many = [replace(recording_of(rank=rank), timeline=steps(4000, bad=(1203,)), events=()) for rank in range(40)]
    many[33] = replace(many[33], events=(event(rank=33),))
    plot = timeline.build(many, many[33].events)
    ranks = {rank for *_, rank in plot.data}
    assert len(ranks) == timeline.MOST_CURVES
    assert 33 in ranks, "a process with an event comes before others"
    assert plot.records <= timeline.MOST_RECORDS * 1.2
    assert sum(outcome == "skipped" for *_, outcome, _ in plot.data) == timeline.MOST_CURVES
    assert sum(rank == 33 and outcome == "clipped" for *_, outcome, rank in plot.data) == 200


def test_no_columns_no_map():
    assert heatmap.build(LayerTable()) is None


DIFF = """--- ./a/train.py
+++ ./a/train.py
@@ -10,3 +10,3 @@
 keep
--- old
+-- new
 keep
@@ -50 +50,2 @@
-x
+y
+z
--- ./b.py\t
+++ ./b.py\t
@@ -1 +1 @@
-1
+2
"""


def test_a_diff_is_read_hunk_by_hunk():
    first, second = Fixes(DIFF).files
    assert (first.name, second.name) == ("a/train.py", "b.py")
    assert first.hunks[0] == Hunk(10, 12, ((" ", "keep"), ("-", "-- old"), ("+", "-- new"), (" ", "keep")))
    assert (first.hunks[1].first, first.hunks[1].last) == (50, 50)
    assert first.at(11) == [first.hunks[0]]
    assert first.at(20) == []


def test_a_finding_gets_its_files_changes_unless_no_rule_knew_its_line():
    fixes = Fixes(DIFF, ("a/train.py:50: NS506 fired there; no rule knows a fix for this line",))
    assert fixes.mends(event(file="/home/x/a/train.py", line=11)).name == "a/train.py"
    assert fixes.mends(event(file="/home/x/a/train.py", line=50)) is None
    assert fixes.mends(event(file="/home/x/other.py", line=11)) is None
    assert fixes.mends(event(file="/home/x/extra_train.py", line=11)) is None
