"""The page in a real browser: it draws, asks for nothing, follows the reader, and runs no text that came from data."""

from __future__ import annotations

import csv
import io
import itertools
import json
import time
from pathlib import Path

import pytest

from rankscope.report import stage
from report_study import finished_study, poison

pytestmark = pytest.mark.browser
# Phone and desktop, light and dark.
VIEWS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    study = finished_study(tmp_path_factory.mktemp("browser") / "study")
    poison(study.store, "small", "general")
    return stage.run(study.store).as_uri()


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
    assert len(marks) == 28
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
    browser.execute_script("arguments[0].click()", button)
    wait_for(lambda: opacities(browser, "learned_forgotten-1")["full"] == 1)


def test_the_training_set_and_the_task_can_be_switched(browser, url):
    open_page(browser, url)
    values = "return [...document.querySelectorAll(arguments[0] + ' .mark-symbol path')].map((m) => m.__data__.datum)"
    assert {row["group"] for row in browser.execute_script(values, "#plot-learned_forgotten-1")} == {"new"}
    button = browser.find_element("css selector", '[data-group="other"]')
    browser.execute_script("arguments[0].click()", button)
    wait_for(
        lambda: {row["group"] for row in browser.execute_script(values, "#plot-learned_forgotten-1")} == {"other"}
    )
    shown = browser.find_elements("css selector", "#lost [data-only-group]")
    assert {part.get_attribute("data-only-group") for part in shown if part.is_displayed()} == {"other"}
    browser.execute_script("""
        const choice = document.querySelector('[data-task-choice]');
        choice.value = 'general';
        choice.dispatchEvent(new Event('change', {bubbles: true}));
    """)
    wait_for(lambda: {row["task"] for row in browser.execute_script(values, "#plot-one_task-1")} == {"general"})


def test_flipped_items_can_be_searched(browser, url):
    open_page(browser, url)
    field = browser.find_element("css selector", "[data-search=flips-1]")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)
    field.send_keys("window.pwned general")
    shown = [item for item in browser.find_elements("css selector", "#flips-1 > li") if item.is_displayed()]
    assert shown
    assert all("window.pwned" in item.text and "general" in item.text for item in shown)
    field.send_keys(" no such words")
    assert not any(item.is_displayed() for item in browser.find_elements("css selector", "#flips-1 > li"))


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


def test_axe_finds_no_serious_fault(browser, url):
    axe = pytest.importorskip("axe_core_python", reason="needs axe: pip install axe-core-python")
    source = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    browser.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})  # only so that axe itself may run
    try:
        for scheme in ("light", "dark"):
            open_page(browser, url, scheme=scheme)
            browser.execute_script(source)
            found = browser.execute_async_script("""
                const done = arguments[0];
                axe.run({resultTypes: ['violations']}).then((result) => done(result.violations.map(
                  (v) => [v.impact, v.id, v.nodes.map((node) => node.html.slice(0, 200))])));
            """)
            assert [fault for fault in found if fault[0] in ("serious", "critical")] == []
    finally:
        browser.execute_cdp_cmd("Page.setBypassCSP", {"enabled": False})
