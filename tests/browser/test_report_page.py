"""The page in a real browser: it draws, asks for nothing, follows the reader, and runs no text that came from data."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from planted import CONFIG, plant
from rankscope.cli import main
from rankscope.report import stage
from rankscope.report.figures import make_figures
from rankscope.report.page import render_page
from rankscope.report.reading import read_contents
from rankscope.report.tables import make_tables
from report_study import EVIL, finished_study, poison, with_losses_of
from synthetic import ARMS

pytestmark = pytest.mark.browser
ENTER, ESCAPE, TAB, RIGHT, DOWN = "\ue007", "\ue00c", "\ue004", "\ue014", "\ue015"  # as WebDriver names the keys
# A narrow phone and a desktop, light and dark.
VIEWS = [(1280, "light"), (360, "dark")]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    made = finished_study(tmp_path_factory.mktemp("browser") / "study")
    poison(made.store, "small", "general")
    return made


@pytest.fixture(scope="module")
def url(study):
    return stage.run(study.store).as_uri()


@pytest.fixture(scope="module")
def across_url(study, tmp_path_factory):
    other = finished_study(tmp_path_factory.mktemp("browser") / "other", training_sets=("new",), draw=1)
    return stage.run_across([study.store, other.store], tmp_path_factory.mktemp("across")).as_uri()


@pytest.fixture(scope="module")
def audit_url(tmp_path_factory):
    root = tmp_path_factory.mktemp("audited")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(CONFIG).save_pretrained(root / "base")
    plant(root / "base", root / "one", seed=1)
    os.environ["RANKSCOPE_CACHE"] = str(root / "cache")
    try:
        assert main(["audit", str(root / "base"), str(root / "one"), "--intruders", "--out", str(root / "out")]) == 0
    finally:
        del os.environ["RANKSCOPE_CACHE"]
    [page] = (root / "out").glob("*.html")
    return page.as_uri()


@pytest.fixture(scope="module")
def many_url(tmp_path_factory):
    arms = [replace(ARMS[1], rank=rank, rates=(1e-3,), best=0) for rank in range(1, 10)]
    made = finished_study(tmp_path_factory.mktemp("browser") / "many", arms=arms, seeds=(0, 1), training_sets=("new",))
    return stage.run(made.store).as_uri()


def open_page(browser, url, width=1280, scheme="light"):
    """Load the page afresh and wait until every plot is drawn; what it logged and asked for is collected after."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get("about:blank")
    browser.set_script_timeout(60)
    for log in ("browser", "performance"):
        browser.get_log(log)  # reading it empties it
    browser.get(url)
    wait_for(lambda: browser.execute_script("return document.documentElement.dataset.drawn"))


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


def opacities(browser, key):
    """The opacities of the points of a plot by arm, read from the picture itself."""
    script = """
        return [...document.querySelectorAll('#plot-' + arguments[0] + ' .mark-symbol path')]
          .map((mark) => [mark.__data__.datum.arm, mark.__data__.opacity]);
    """
    return {arm: opacity for arm, opacity in browser.execute_script(script, key)}


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_it_opens_without_errors_and_draws_every_plot(browser, url, width, scheme):
    open_page(browser, url, width, scheme)
    assert browser.get_log("browser") == []
    marks = browser.execute_script("""
        return [...document.querySelectorAll('.plot')].map((plot) =>
          [plot.id, plot.querySelectorAll('svg [role="graphics-symbol"], svg .role-mark path').length]);
    """)
    assert len(marks) == 35
    assert all(count > 0 for _, count in marks), marks
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_no_request_leaves_the_page(browser, url):
    open_page(browser, url)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [address for address in asked if not address.startswith("data:")] == [url]


def test_the_policy_stops_the_network_and_foreign_scripts(browser, url):
    open_page(browser, url)
    refused = browser.execute_async_script("""
        const done = arguments[0];
        fetch('http://127.0.0.1:9/').then(() => done(false), () => done(true));
    """)
    assert refused
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))
    assert browser.execute_script("return window.pwned === undefined")
    assert browser.execute_script("""
        const script = document.createElement('script');
        script.textContent = 'window.foreign = 1';
        document.body.append(script);
        return window.foreign === undefined;
    """)


def test_an_arm_is_highlighted_everywhere_at_once(browser, url):
    open_page(browser, url)
    button = browser.find_element("css selector", '[data-arm-choice="lora-r16"]')
    browser.execute_script("arguments[0].click()", button)
    wait_for(lambda: opacities(browser, "learned_forgotten-1")["full"] < 0.5)
    for key in ("learned_forgotten-1", "learned_forgotten-2", "rank_curves-1", "learning_rates-1", "cost-1"):
        found = opacities(browser, key)
        assert found["lora-r16"] == 1, key
        assert all(value < 0.5 for arm, value in found.items() if arm != "lora-r16"), key
    assert button.get_attribute("aria-pressed") == "true"
    assert browser.execute_script("return document.querySelectorAll('tr[data-arm=full]:not(.faded)').length") == 0
    button.send_keys(ENTER)  # by keyboard as by mouse
    wait_for(lambda: opacities(browser, "learned_forgotten-1")["full"] == 1)
    assert button.get_attribute("aria-pressed") == "false"


def test_the_training_set_and_the_task_can_be_switched(browser, url):
    open_page(browser, url)
    values = "return [...document.querySelectorAll(arguments[0] + ' .mark-symbol path')].map((m) => m.__data__.datum)"
    assert {row["group"] for row in browser.execute_script(values, "#plot-learned_forgotten-1")} == {"new"}
    button = browser.find_element("css selector", '[data-group="other"]')
    browser.execute_script("arguments[0].click()", button)
    wait_for(lambda: {row["group"] for row in browser.execute_script(values, "#plot-learned_forgotten-1")} == {"other"})
    shown = browser.find_elements("css selector", "#lost [data-only-group]")
    assert {part.get_attribute("data-only-group") for part in shown if part.is_displayed()} == {"other"}
    browser.execute_script("""
        const choice = document.querySelector('[data-task-choice]');
        choice.value = 'general';
        choice.dispatchEvent(new Event('change', {bubbles: true}));
    """)
    wait_for(lambda: {row["task"] for row in browser.execute_script(values, "#plot-one_task-1")} == {"general"})


def test_a_plot_without_anything_of_the_picked_training_set_is_not_there(browser, study, tmp_path):
    contents = read_contents(study.store)
    tables = with_losses_of(make_tables(contents), "other")
    page = tmp_path / "mixed.html"
    page.write_text(render_page(contents, tables, make_figures(tables, contents)), encoding="utf-8")
    open_page(browser, page.as_uri())
    script = """
        return [...document.querySelectorAll('#learned_forgotten figure:not([hidden])')].map((figure) =>
          [figure.querySelector('figcaption span').textContent.split(' against')[0],
           figure.querySelectorAll('.mark-symbol path').length]);
    """
    assert browser.execute_script(script) == [["Learned (accuracy)", 5]] * 2
    browser.execute_script("document.querySelector('[data-group=other]').click()")
    wait_for(lambda: browser.execute_script(script) == [["Learned (loss)", 5]] * 2)
    assert browser.execute_script(
        "return document.querySelectorAll('#learned_forgotten-3 svg, #plot-glance-2 svg').length"
    )


def test_flipped_items_can_be_searched(browser, url):
    open_page(browser, url)
    part = browser.find_element("css selector", "#flips-1").find_element("xpath", "..")
    field = part.find_element("css selector", "[type=search]")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)

    def texts():
        return [item.text for item in part.find_elements("css selector", "#flips-1 > li")]

    assert len(texts()) == 12
    field.send_keys("window.pwned general")
    assert texts()
    assert all("window.pwned" in text and "general" in text for text in texts())
    assert EVIL in texts()[0].replace("\n", " ")
    field.send_keys(" no such words")
    assert texts() == []
    assert part.find_element("css selector", ".found").text == "0 of 0 shown"
    field.clear()
    field.send_keys("general")
    change = part.find_element("css selector", "[data-change]")
    change.send_keys("gained")
    wait_for(lambda: texts() and all(text.startswith("gained") for text in texts()))
    # Items that the picked arm did not flip are left out.
    browser.execute_script("document.querySelector('[data-arm-choice=lora-r4]').click()")
    wait_for(lambda: all("lora-r4" in text for text in texts()))
    assert browser.execute_script("return window.pwned === undefined")


def test_the_data_of_a_plot_can_be_downloaded(browser, url):
    open_page(browser, url)
    text = browser.execute_async_script("""
        const done = arguments[0];
        const original = URL.createObjectURL;
        URL.createObjectURL = (blob) => { blob.text().then(done); return original(blob); };
        document.querySelector('[data-download="learned_forgotten-1"]').click();
    """)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {row["arm"] for row in rows} == {"base", "lora-r4", "lora-r16", "lora-r64", "full"}
    assert all(float(row["x_low"]) <= float(row["x"]) <= float(row["x_high"]) for row in rows)


def test_the_numbers_of_a_plot_can_be_read_as_a_table(browser, url):
    """By keyboard alone, for whoever cannot point at a mark."""
    open_page(browser, url)
    button = browser.find_element("css selector", '[data-table="one_task-1"]')
    assert button.get_attribute("aria-expanded") == "false"
    button.send_keys(ENTER)
    rows = "return [...document.querySelectorAll('#table-one_task-1 tbody tr')].map((row) => row.textContent)"
    found = browser.execute_script(rows)
    assert len(found) == 4 and all("taught" in row and "decide/record.json" in row for row in found)
    assert button.get_attribute("aria-expanded") == "true"
    browser.execute_script("document.querySelector('[data-arm-choice=full]').click()")
    assert len(browser.execute_script(rows)) == 1
    head = browser.execute_script("return document.querySelector('#table-one_task-1 thead').textContent")
    assert "_" not in head


def test_a_number_says_what_it_rests_on_when_it_is_touched(browser, url):
    open_page(browser, url, width=360)
    cell = browser.find_element("css selector", "tr[data-arm=lora-r16] td.number[title^='gain']")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", cell)
    browser.execute_script("arguments[0].click()", cell)
    note = browser.find_element("css selector", "#note")
    wait_for(note.is_displayed)
    assert "300 items, 3 seeds; decide/record.json" in note.text
    browser.find_element("css selector", "body").send_keys(ESCAPE)
    assert not note.is_displayed()


def test_a_number_says_what_it_rests_on_by_keyboard(browser, url):
    """A table is one stop of the Tab key; the arrow keys go on from there."""
    open_page(browser, url)
    stops = browser.execute_script("""
        const noted = (table) => [...table.querySelectorAll('[title]:not([title=""])')];
        return [...document.querySelectorAll('main table')].filter((table) => noted(table).length)
          .map((table) => noted(table).filter((cell) => cell.tabIndex === 0).length);
    """)
    assert len(stops) > 8 and set(stops) == {1}
    note = browser.find_element("css selector", "#note")
    [first, *_] = browser.find_elements("css selector", "table.arms [tabindex='0']")
    browser.execute_script("arguments[0].focus()", first)
    assert note.is_displayed() and "accuracy" in note.text
    said = []
    for _ in range(20):
        browser.switch_to.active_element.send_keys(RIGHT)
        said.append(note.text)
    assert any("300 items, 3 seeds" in text and "decide/record.json" in text for text in said)
    column = browser.execute_script("return document.activeElement.cellIndex")
    row = browser.execute_script("return document.activeElement.parentElement.rowIndex")
    browser.switch_to.active_element.send_keys(DOWN)
    assert browser.execute_script("return document.activeElement.cellIndex") == column
    assert browser.execute_script("return document.activeElement.parentElement.rowIndex") > row
    # A browser tells of having scrolled with its next picture, not at once.
    wait_for(lambda: note.is_displayed() and _is_in_sight(browser))
    browser.switch_to.active_element.send_keys(TAB)
    assert not note.is_displayed()
    assert browser.execute_script("return document.querySelectorAll('table.arms [tabindex=\"0\"]').length") == 2


def test_a_note_stands_above_its_number_where_there_is_no_room_below(browser, url):
    open_page(browser, url)
    cell = browser.find_element("css selector", "table.arms [tabindex='0']")
    browser.execute_script(
        "arguments[0].scrollIntoView({block: 'end', behavior: 'instant'}); arguments[0].focus()", cell
    )
    wait_for(lambda: _is_in_sight(browser))
    lower_edge = browser.execute_script("return document.querySelector('#note').getBoundingClientRect().bottom")
    assert lower_edge <= browser.execute_script("return arguments[0].getBoundingClientRect().top", cell)


def _is_in_sight(browser):
    """Whether the whole note of a number is inside the window."""
    return browser.execute_script(
        "const r = document.querySelector('#note').getBoundingClientRect(); return r.top > 0 && r.bottom < innerHeight"
    )


def test_no_number_of_a_table_is_without_its_source(browser, url, audit_url):
    """Its own note, its row's, or the definitions and sources of its part."""
    for address in (url, audit_url):
        open_page(browser, address)
        loose = browser.execute_script("""
            return [...document.querySelectorAll('main table td.number')]
              .filter((cell) => /[0-9]/.test(cell.textContent))
              .filter((cell) => !cell.closest('[title]:not([title=""])'))
              .filter((cell) => !cell.closest('.against, .figure, section').querySelector('.definitions'))
              .map((cell) => cell.closest('section').id + ': ' + cell.parentElement.textContent.slice(0, 80));
        """)
        assert loose == [], address


def test_a_mark_says_what_it_rests_on_when_it_is_pointed_at(browser, url):
    open_page(browser, url)
    spot = browser.execute_script("""
        const marks = [...document.querySelectorAll('#plot-rank_curves-1 .mark-symbol path')];
        const mark = marks.find((one) => one.__data__.datum.arm === 'lora-r16');
        mark.scrollIntoView({block: 'center', behavior: 'instant'});
        const box = mark.getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2];
    """)
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": spot[0], "y": spot[1]})
    text = "return document.querySelector('#vg-tooltip-element.visible')?.textContent ?? ''"
    wait_for(lambda: browser.execute_script(text))
    said = browser.execute_script(text)
    rests = "95% interval (seeds pooled over arms), 300 items, 3 seeds; decide/record.json"
    assert all(part in said for part in ("lora-r16", "points (", rests))


def test_maps_of_many_arms_are_shown_when_asked_for(browser, many_url):
    open_page(browser, many_url)
    shown = "return [...document.querySelectorAll('#module_map figure:not([hidden])')].map((f) => f.dataset.panelArm)"
    assert len(browser.execute_script(shown)) == 6
    browser.execute_script("document.querySelector('[data-arm-choice=lora-r9]').click()")
    assert browser.execute_script(shown) == ["lora-r9"]
    assert browser.execute_script("""
        return document.querySelector('#plot-module_map-9 svg').getBoundingClientRect().width > 100;
    """)
    browser.execute_script("document.querySelector('[data-clear]').click()")
    browser.execute_script("document.querySelector('#module_map [data-show-all]').click()")
    assert len(browser.execute_script(shown)) == 9
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_on_paper_every_table_is_there_and_no_button(browser, url):
    open_page(browser, url)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not any(b.is_displayed() for b in browser.find_elements("css selector", "button, input, .controls"))
        parts = browser.find_elements("css selector", "#lost > [data-only-group]")
        assert len(parts) == 2 and all(part.is_displayed() for part in parts)
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_what_is_folded_away_is_printed_and_folded_again(browser, url):
    open_page(browser, url)
    closed = "return document.querySelectorAll('details:not([open])').length"
    before = browser.execute_script(closed)
    assert before > 20
    # After the page's own listener, as the paper sees it; what it holds is laid out, so it has a height.
    browser.execute_script("""
        addEventListener('beforeprint', () => {
          const parts = [...document.querySelectorAll('details')];
          window.onPaper = [parts.filter((part) => !part.open).length, parts.length];
        });
    """)
    printed = browser.execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert base64.b64decode(printed).startswith(b"%PDF-")
    assert browser.execute_script("return window.onPaper") == [0, before + browser.execute_script(
        "return document.querySelectorAll('details[open]').length")]  # fmt: skip
    assert browser.execute_script(closed) == before


def test_paper_is_no_phone(browser, url):
    """A sheet is as narrow as one, and plots one below the other made a page of twice as many sheets."""
    open_page(browser, url)
    columns = """
        const style = getComputedStyle(document.querySelector('#spectra .panels'));
        return style.gridTemplateColumns.split(' ').length;
    """
    try:
        metrics = {"width": 700, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        assert browser.execute_script(columns) == 1
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        assert browser.execute_script(columns) == 2
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_on_paper_what_says_what_follows_is_not_parted_from_it(browser, url, across_url):
    """A heading, its words and a legend stood at the end of a sheet; the first verdict left the first one empty."""
    ways = """
        const names = ['h2', 'h3', '.shows', '.ramp', 'summary', 'tr.heading'];
        const loose = names.filter((name) => [...document.querySelectorAll('main ' + name)]
          .some((part) => getComputedStyle(part).breakAfter !== 'avoid'));
        const there = names.filter((name) => document.querySelector('main ' + name)).length;
        return [loose, there, getComputedStyle(document.querySelector('.verdict')).breakInside];
    """
    for address, num_kinds in ((url, 6), (across_url, 4)):
        open_page(browser, address)
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        try:
            assert browser.execute_script(ways) == [[], num_kinds, "auto"]
        finally:
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_the_other_pages_draw_and_keep_to_themselves(browser, across_url, audit_url):
    for address, width in itertools.product((across_url, audit_url), (1280, 360)):
        open_page(browser, address, width)
        assert browser.get_log("browser") == []
        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        assert [one for one in asked if not one.startswith("data:")] == [address]
        plots = browser.execute_script(
            "return [...document.querySelectorAll('.plot')].map((p) => p.querySelectorAll('svg path').length)"
        )
        assert plots and all(plots)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_an_interval_as_wide_as_its_plot_is_seen_to_end_in_it(browser, across_url):
    """It went from edge to edge, as if it ran on outside."""
    open_page(browser, across_url)
    plots = browser.execute_script("""
        return [...document.querySelectorAll('#across .plot')].map((plot) => {
          const area = plot.querySelector('.background').getBoundingClientRect();
          const marks = (kind) => [...plot.querySelectorAll(kind)].map((m) => m.getBoundingClientRect());
          const lines = marks('.mark-rule.role-mark line').filter((line) => line.width > 1);
          const air = lines.map((line) => Math.min(line.left - area.left, area.right - line.right));
          return [lines.length, marks('.role-mark.mark-rect path').length, Math.min(...air)];
        });
    """)
    assert plots
    for num_intervals, num_ends, air in plots:
        assert num_intervals > 1 and num_ends == 2 * num_intervals and air > 6


def test_all_of_it_can_be_reached_by_keyboard_and_has_a_name(browser, url):
    open_page(browser, url)
    unnamed = browser.execute_script("""
        const name = (e) => (e.getAttribute('aria-label') || e.textContent || e.labels?.[0]?.textContent || '').trim();
        const controls = [...document.querySelectorAll('button, select, input, summary, a, [role=img], [tabindex]')];
        return controls.filter((e) => !name(e)).map((e) => e.outerHTML.slice(0, 120));
    """)
    assert unnamed == []
    levels = browser.execute_script("return [...document.querySelectorAll('h1,h2,h3')].map((h) => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert browser.execute_script("return document.querySelectorAll('main, header, footer').length") == 3


def test_axe_finds_no_serious_fault(browser, url, across_url, audit_url):
    axe = pytest.importorskip("axe_core_python", reason="needs axe: pip install axe-core-python")
    source = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    browser.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})  # only so that axe itself may run
    views = [(url, 1280, "light"), (url, 360, "dark"), (across_url, 1280, "dark"), (audit_url, 1280, "light")]
    try:
        for address, width, scheme in views:
            open_page(browser, address, width, scheme)
            browser.execute_script(source)
            found = browser.execute_async_script("""
                const done = arguments[0];
                axe.run({resultTypes: ['violations']}).then((result) => done(result.violations.map(
                  (v) => [v.impact, v.id, v.nodes.map((node) => node.html.slice(0, 200))])));
            """)
            serious = [fault for fault in found if fault[0] in ("serious", "critical")]
            assert serious == [], (address, width, scheme)
    finally:
        browser.execute_cdp_cmd("Page.setBypassCSP", {"enabled": False})
