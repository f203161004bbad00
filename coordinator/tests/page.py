"""Watches a job in a browser from its start to its report. coordinator/tests/it/page.rs runs it with the page's address.

It prints `at work` once it sees a worker at work, and then waits until the page shows that this worker was lost."""

import os
import sys
from pathlib import Path

import axe_playwright_python
from playwright.sync_api import expect, sync_playwright

URL, CHROMIUM = sys.argv[1:3]
PICTURES = os.environ.get("LLINK_PAGE_PICTURES")
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text()
SCRIPT = "<img src=x onerror=alert(1)>"
# A slow machine trains for minutes, and a wait ends as soon as the page shows what it waits for.
PATIENCE = 900_000

faults = []
expect.set_options(timeout=PATIENCE)


def watched(page):
    """Collects forbidden events: errors, dialogs, and requests to other servers."""
    page.on("console", lambda said: said.type in ("error", "warning") and faults.append(said.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: (faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda asked: asked.url.startswith((URL, "data:")) or faults.append(f"asked {asked.url}"))
    page.set_default_timeout(PATIENCE)
    return page


def check(page):
    """Checks that the page is accessible and fits a phone."""
    for width, scheme in ((1280, "light"), (360, "dark")):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_function("width => Math.max(...[...document.querySelectorAll('.uplot')].map(c => c.offsetWidth), 0) <= width", arg=width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{page.url} is wider than {width}"
        page.evaluate(AXE)
        found = page.evaluate("axe.run().then(found => found.violations)")
        assert not found, f"{page.url} at {width}: {found}"
    page.set_viewport_size({"width": 1280, "height": 800})
    page.emulate_media(color_scheme="light")


def picture(page, name):
    if PICTURES:
        page.screenshot(path=f"{PICTURES}/{name}.png", full_page=True)


def main(browser):
    page = watched(browser.new_page())
    answer = page.goto(URL)
    assert "script-src 'self'" in answer.headers["content-security-policy"], answer.headers
    check(page)

    # The keyboard alone leads past the header to the job.
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.get_by_role("link", name="watched").first.wait_for()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="watched").first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1, name="watched")).to_be_visible()
    expect(page.get_by_text(SCRIPT).first).to_be_visible()

    # Charts grow, and the page reports a killed worker.
    loss = page.locator("figcaption", has_text="loss: loss from")
    expect(loss.first).to_be_visible()
    expect(page.locator(".chart canvas").first).to_be_visible()
    before = loss.first.text_content()
    expect(loss.first).not_to_have_text(before)
    expect(page.locator("#workers").get_by_text("local-").first).to_be_visible()
    # The checks below take time, in which the training could end.
    print("at work", flush=True)
    check(page)
    picture(page, "job")
    plain = browser.new_context(java_script_enabled=False).new_page()
    plain.set_default_timeout(PATIENCE)
    plain.goto(page.url)
    expect(plain.locator("figcaption").first).to_contain_text("loss from")
    expect(plain.locator("#stages")).to_contain_text("align")
    plain.close()
    expect(page.locator("#events").get_by_text("was lost").first).to_be_visible()
    picture(page, "lost")

    # The report appears without a reload, and stays after the coordinator has ended.
    expect(page.locator("#report").get_by_text("Retrieval among")).to_be_visible()
    expect(page.locator("#status")).to_contain_text("succeeded")
    expect(page.get_by_text("The coordinator has ended.")).to_be_visible()
    expect(page.locator("figcaption", has_text="held-out retrieval").first).to_be_visible()
    check(page)
    picture(page, "report")
    assert not faults, faults


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE)
    main(browser)
    browser.close()
