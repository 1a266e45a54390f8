"""report.html in a real headless Chromium: it draws what was recorded, complains of nothing, and holds at every size and mode."""

import base64
import math
import re

import pytest

from instrument.history import StepRecord
from instrument.report import folder as report_folder
from instrument.report import page
from instrument.report.fixes import Fixes
from tests.instrument.report import browser
from tests.instrument.report.recorded import event, steps, write_folder

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.skipif(browser.missing() is not None, reason=browser.missing() or "")]

HOSTILE = '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2"></script><b>\' " `${1}` {{ 7 * 7 }} &amp;'
DIFF = "--- ./train.py\n+++ ./train.py\n@@ -47,3 +47,3 @@\n a = 1\n-" + HOSTILE + "\n+" + "mended(" * 40 + ")" * 40 + "\n b = 2\n"


@pytest.fixture(scope="module")
def driver():
    started = browser.start()
    yield started
    started.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page with everything on it, and hostile text wherever a script's own text gets to."""
    folder = tmp_path_factory.mktemp("report")
    events = [
        event(source=HOSTILE, message=HOSTILE, module=HOSTILE, function=HOSTILE, dtype="float32", shape=(64, 12), minimum=-1.0, maximum=88.7, inf=3),
        event("NS506", file=f"/srv/{HOSTILE.replace('/', '-')}/{'long' * 40}.py", line=77, action="skipped", step=6, last_step=6, steps=(6,)),
        event("NS507", line=77, action="clipped", source="optimizer.step()"),
    ]
    write_folder(folder, events, state=f"ended by ValueError: {HOSTILE}")
    return report_folder.read(folder)


@pytest.fixture
def opened(driver, report, tmp_path):
    """The page, freshly loaded at desktop size."""
    browser.screen(driver, 1100)
    path = tmp_path / "report.html"
    path.write_text(page.render(report, Fixes(DIFF, ("train.py:77: NS506 fired there; no rule knows a fix for this line",))), encoding="utf-8")
    driver.get(path.as_uri())
    return driver


def problems(driver):
    return [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def vertices(path):
    return len(re.findall("[ML]", path))


def test_the_browser_tells_of_errors_and_runs_scripts(driver):
    """The control for the two tests below: a page that is careless is caught."""
    browser.screen(driver, 1100)
    driver.get("data:text/html,<p><script>window.hacked = 1; console.error('seen')</script>")
    assert driver.execute_script("return window.hacked") == 1
    assert problems(driver)


def test_no_console_error_no_request_and_no_script_but_ours(opened):
    assert problems(opened) == []
    assert opened.execute_script("return window.hacked === undefined")
    requests = opened.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in requests if not name.startswith("data:")] == []
    assert HOSTILE in opened.execute_script("return document.querySelector('#cause .message').textContent")
    assert "49" not in opened.execute_script("return document.querySelector('#cause .message').textContent")


def test_a_script_that_got_into_the_page_would_not_run(opened):
    """The second lock: the page's own policy, for text that an escape would miss."""
    opened.execute_script(
        "const s = document.createElement('div'); s.innerHTML = '<img src=x onerror=\"window.hacked = 3\">'; document.body.append(s)"
    )
    opened.execute_script("const s = document.createElement('script'); s.textContent = 'window.hacked = 4'; document.body.append(s)")
    assert opened.execute_script("return window.hacked === undefined")
    assert any("Content Security Policy" in entry["message"] for entry in opened.get_log("browser"))


@pytest.mark.parametrize("panel", ["loss", "norm"])
def test_the_plot_has_its_points(opened, panel, report):
    paths = opened.execute_script(f"return [...document.querySelectorAll('.panel.{panel} .curve')].map((path) => path.getAttribute('d'))")
    gaps = opened.execute_script(f"return document.querySelectorAll('.panel.{panel} .gaps path').length")
    records = report.recordings[0].timeline
    values = [r.loss if panel == "loss" else r.gradient_norm for r in records]
    assert [vertices(path) for path in paths] == [sum(math.isfinite(v) for v in values)] == [39]
    assert gaps == sum(not math.isfinite(v) for v in values) == 1
    box = opened.execute_script(f"return document.querySelector('.panel.{panel} .curve').getBoundingClientRect().toJSON()")
    assert box["width"] > 800
    assert box["height"] > 60, "the curve uses the panel's height"


def test_interventions_are_marked_where_they_were(opened, report):
    titles = opened.execute_script("return [...document.querySelectorAll('.lane title')].map((title) => title.textContent)")
    skipped = [title for title in titles if title.startswith("step 6:")]
    assert any("skipped" in title and "NS506" in title for title in skipped)
    clipped = opened.execute_script("return document.querySelectorAll('[data-lane=clipped] path').length")
    assert clipped == len({19, 39} | {3, 5, 9}), "two clipped steps, and the event's three"
    drawn = opened.execute_script("return [...document.querySelectorAll('.lane path')].every((path) => path.getBoundingClientRect().height > 5)")
    assert drawn


def test_pointing_and_arrow_keys_read_a_step(opened, report):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    area = opened.find_element(By.CSS_SELECTOR, ".panel.loss .area")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", area)
    ActionChains(opened).move_to_element(area).perform()
    readout = opened.find_element(By.ID, "readout")
    shown = int(re.match(r"step (\d+),", readout.text)[1])
    assert shown in (19, 20), "the middle of 0 to 39"
    assert f"loss {2.0 / (shown + 1):.4g}" in readout.text
    assert opened.find_element(By.ID, "cursor").is_displayed()
    plot = opened.find_element(By.ID, "plot")
    for _ in range(shown - 6):
        plot.send_keys(Keys.ARROW_LEFT)
    assert readout.text.startswith("step 6, loss nan, gradient norm inf")
    assert "skipped" in readout.text
    assert "NS506" in readout.text


def test_the_heat_map_has_its_cells_and_reads_them(opened, report):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    image = opened.find_element(By.CSS_SELECTOR, ".map img")
    assert opened.execute_script("return [arguments[0].naturalWidth, arguments[0].naturalHeight]", image) == [4, 3]
    pixel = """
        const canvas = document.createElement('canvas'), image = arguments[0];
        canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
        const context = canvas.getContext('2d', {willReadFrequently: true}); context.drawImage(image, 0, 0);
        return [[2, 0], [0, 1], [0, 2], [2, 2], [0, 0]].map(([x, y]) => [...context.getImageData(x, y, 1, 1).data]);
    """
    bad, zero, absent, largest, middling = opened.execute_script(pixel, image)
    assert bad == [0xE5, 0x00, 0x7A, 255]
    assert zero == [0x8A, 0x8F, 0x98, 255]
    assert absent[3] == 0
    assert largest == [0xFD, 0xE7, 0x25, 255]
    assert middling not in (bad, zero, largest)
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", image)
    box = image.rect
    ActionChains(opened).move_to_element_with_offset(image, int(box["width"] * 0.375), int(box["height"] / 3)).perform()
    assert opened.find_element(By.CSS_SELECTOR, "[data-readout]").text == "head.weight, step 15, gradient norm 1"


def test_every_link_leads_somewhere(opened):
    from selenium.webdriver.common.by import By

    links = opened.find_elements(By.CSS_SELECTOR, "a")
    assert len(links) >= 6
    for link in links:
        target = link.get_attribute("href").partition("#")[2]
        assert opened.execute_script("return document.getElementById(arguments[0]) !== null", target), link.text
    opened.find_element(By.LINK_TEXT, "what was watched").click()
    assert opened.execute_script("const y = document.getElementById('watched').getBoundingClientRect().top; return y < innerHeight && y > -5")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [375, 320, 768, 1100])
def test_nothing_sticks_out_at_any_width(opened, width, dark):
    browser.screen(opened, width, dark=dark)
    wide = """
        return [...document.querySelectorAll('body *')]
            .filter((e) => !e.closest('.code, svg, [hidden]') && e.getBoundingClientRect().right > innerWidth + 0.5)
            .map((e) => `${e.tagName}.${e.className}`);
    """
    assert opened.execute_script("return document.documentElement.scrollWidth") == width
    assert opened.execute_script(wide) == []


CONTRAST = """
    const channel = (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    const parts = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = (text) => { const [r, g, b] = parts(text); return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); };
    const ground = (e) => {
        for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$/.test(c)) return c; }
        return 'rgb(255, 255, 255)';
    };
    const ratio = (e) => {
        const a = light(getComputedStyle(e).color), b = light(ground(e));
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    };
    return [...document.querySelectorAll('h1, h2, h3, p, a, dt, dd, li, .line, .number, .rule b, .bad, .quiet')]
        .filter((e) => e.textContent.trim() && !e.closest('[hidden]'))
        .map((e) => [ratio(e), e.tagName + '.' + e.className])
        .sort((a, b) => a[0] - b[0])[0];
"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_in_both_modes(opened, dark):
    browser.screen(opened, 1100, dark=dark)
    red, green, blue = map(int, re.findall(r"\d+", opened.execute_script("return getComputedStyle(document.body).backgroundColor"))[:3])
    assert (red + green + blue < 150) is dark
    ratio, where = opened.execute_script(CONTRAST)
    assert ratio >= 4.5, f"WCAG AA asks for 4.5; {where} has {ratio:.2f}"


def test_paper_is_white_and_whole(opened):
    browser.screen(opened, 1100, dark=True, media="print")
    assert opened.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.execute_script("return getComputedStyle(document.querySelector('nav')).display") == "none"
    assert opened.execute_script("return getComputedStyle(document.querySelector('.code .line')).whiteSpace") == "pre-wrap", "long lines are not cut"
    printed = opened.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")


def test_a_run_in_which_nothing_happened_is_a_calm_page(driver, tmp_path):
    write_folder(tmp_path, interventions=0, skipped=0, clipped=0, first_cause=None, first_cause_code=None)
    (tmp_path / "events.jsonl").write_text("")
    report_folder.rebuild(tmp_path)
    browser.screen(driver, 375)
    driver.get((tmp_path / "report.html").as_uri())
    assert problems(driver) == []
    assert driver.execute_script("return document.querySelector('h1').textContent") == "Nothing had to be done in 40 steps."
    assert driver.execute_script("return document.getElementById('findings') === null && document.getElementById('cause') === null")


def test_several_processes_have_a_curve_each(driver, tmp_path):
    for rank in range(3):
        write_folder(tmp_path, rank=rank)
    report_folder.rebuild(tmp_path)
    browser.screen(driver, 375)
    driver.get((tmp_path / "report.html").as_uri())
    assert problems(driver) == []
    assert driver.execute_script("return document.querySelectorAll('.panel.loss .curve').length") == 3
    assert driver.execute_script("return document.querySelectorAll('.map').length") == 3
    assert driver.execute_script("return document.documentElement.scrollWidth") == 375


@pytest.mark.parametrize(
    "records",
    [
        [StepRecord(1, 0.5, None, None, "stepped", 0.0)],
        [StepRecord(i, math.nan, math.nan, None, "skipped", 0.0) for i in range(1, 4)],
        [StepRecord(i, -(10.0**i), 0.0, 1e-3, "stepped", 0.0) for i in range(1, 9)],
        [StepRecord(i, 10.0 ** (300 * (i == 3)), 10.0 ** -(300 * (i == 3)), 1e-3, "stepped", 0.0) for i in range(1, 9)],
        [StepRecord(i, 3.0, 3.0, 1e-3, "stepped", 0.0) for i in range(1, 9)],
        [*steps(20), StepRecord(21, None, 1.0, 0.1, "clipped", 1.0), StepRecord(22, 1.7e308, 1.7e308, 0.1, "clipped", 1.0)],
    ],
    ids=["one step", "never finite", "negative", "extremes", "constant", "largest"],
)
def test_odd_numbers_still_make_a_plot(driver, tmp_path, records):
    from instrument.history import write_timeline

    write_folder(tmp_path)
    write_timeline(records, tmp_path / "timeline.jsonl")
    report_folder.rebuild(tmp_path)
    driver.get((tmp_path / "report.html").as_uri())
    assert problems(driver) == []
    found = driver.execute_script("return [...document.querySelectorAll('.curve')].map((path) => path.getAttribute('d')).join('')")
    numbers = [float(n) for n in re.findall(r"-?[\d.]+(?:e-?\d+)?", found)]
    assert all(0.0 <= n <= 1000.0 for n in numbers)
    assert vertices(found) == sum(v is not None and math.isfinite(v) for r in records for v in (r.loss, r.gradient_norm))
