"""Looks at the page of `--http` as a person would: in a browser, while the pool is written.

    http_page.py ADDRESS POOL LOGS      screenshots go to LOGS; THINCTL asks what the page must say
"""

import json
import os
import subprocess
import sys
import tempfile
import time

from browser import Browser

LOW_WATER = "document.querySelector('#events [data-event=low_water]')?.textContent"
NAMES = "[...document.querySelectorAll('#devices tbody .name')].map((name) => name.textContent)"
# A row's name, and what it has mapped in bytes.
MAPPED = ("Object.fromEntries([...document.querySelectorAll('#devices tbody tr')]"
          ".map((row) => [row.querySelector('.name').textContent, Number(row.querySelector('data').value)]))")
WRITES_SEEN = "Number(document.getElementById('requests').textContent) !== 0"


def thinctl(*arguments):
    return json.loads(subprocess.check_output([os.environ["THINCTL"], *arguments, "--json"]))


def text(browser, identity):
    return browser.value(f"document.getElementById('{identity}').textContent")


def check_figures(browser, pool):
    """Nothing is written now: the page comes to say what the tool says."""
    stores = ("data", "metadata")
    end = time.monotonic() + 30
    while True:
        # What was written last is committed meanwhile, which takes metadata.
        info = thinctl("info", pool)
        expected = [info[f"{store}_used_bytes"] for store in stores]
        shown = [int(browser.value(f"document.getElementById('{store}-used').value")) for store in stores]
        if shown == expected:
            break
        assert time.monotonic() < end, f"used {shown}, expected {expected}"
        time.sleep(0.1)
    assert text(browser, "name") == os.path.basename(pool)
    assert text(browser, "mode") == "write", text(browser, "mode")
    expected = {device["name"]: device["mapped_bytes"] for device in thinctl("ls", pool)}
    assert browser.value(MAPPED) == expected, f"{browser.value(MAPPED)}, expected {expected}"


def check_lineage(browser, pool):
    """Rows stand as `thinctl tree` has them, each at its level."""
    tree = thinctl("tree", pool)
    names = browser.value(NAMES)
    assert names == [node["name"] for node in tree], names
    nodes = browser.value("[...document.querySelectorAll('#devices tbody .node')]"
                          ".map((node) => Number(node.getAttribute('cx')))")
    levels = sorted(set(nodes))
    assert [levels.index(place) for place in nodes] == [node["depth"] for node in tree], nodes


def check_filter(browser):
    """Names that match, and what they were made from; all again when it is empty."""
    def type_in(word):
        browser.value(f"document.getElementById('filter').value = '{word}';"
                      "document.getElementById('filter').dispatchEvent(new Event('input'))")
        return browser.value(NAMES)
    assert type_in("DEV") == ["prod", "prod@monday", "dev"], type_in("DEV")
    assert type_in("nothing like it") == []
    assert "nothing like it" in text(browser, "no-devices")
    assert len(type_in("")) == 4


def check_charts(browser):
    """Samples are drawn, and arrow keys read them."""
    browser.wait_for("document.querySelectorAll('.chart path.series-0').length === 5")
    latest = browser.value("document.querySelector('#data-used').textContent")
    readout = "document.querySelector('.chart .readout').textContent"
    browser.wait_for(f"{readout}.includes('{latest}')")
    browser.value("document.querySelector('.chart svg').focus()")
    for _ in range(100):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft")
    earlier = browser.value(readout)
    at = browser.value("document.querySelector('.chart .at').textContent")
    assert at.count(":") == 2 and latest not in earlier, f"at first {earlier}, pointed at {at}, now {latest}"
    browser.value("document.activeElement.blur()")


def check_widths(browser, logs):
    """Nothing sticks out on any screen; pictures to look at."""
    for width, height in ((360, 740), (1600, 1000)):
        for scheme in ("light", "dark"):
            browser.look_as(width, height, scheme)
            browser.value("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
            needed = browser.value("document.documentElement.scrollWidth")
            assert needed <= width, f"the page is {needed} wide on a screen of {width}"
            dark = browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(17, 21, 26)"
            assert dark == (scheme == "dark"), f"wrong colours for {scheme}"
            browser.screenshot(f"{logs}/http-{scheme}-{width}.png")


def main():
    address, pool, logs = sys.argv[1:]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, Browser(profile) as browser:
        browser.look_as(1600, 1000, "light")
        browser.open(f"http://{address}/")
        browser.wait_for("document.getElementById('connection').textContent === 'live'")
        # The script that started this writes until it is told that this was seen.
        browser.wait_for(WRITES_SEEN)
        browser.wait_for("document.getElementById('p99').textContent.endsWith('s')")
        print("busy", flush=True)
        low = browser.wait_for(LOW_WATER)
        assert "Data space is low" in low, low
        sys.stdin.readline()
        check_figures(browser, pool)
        check_lineage(browser, pool)
        check_filter(browser)
        check_charts(browser)
        check_widths(browser, logs)
        assert browser.complaints == [], browser.complaints
        others = [url for url in browser.urls if not url.startswith((f"http://{address}/", "about:"))]
        assert browser.urls and others == [], f"asked for {others}"
        print(f"{len(browser.urls)} requests, all to {address}")
        gone(browser)


def gone(browser):
    """Says that the daemon has gone, and goes on by itself when there is another one."""
    before = text(browser, "about")
    print("end it", flush=True)
    browser.wait_for("!document.getElementById('notice').hidden")
    notice = text(browser, "notice")
    assert "has not answered since" in notice, notice
    assert text(browser, "connection") == "no answer"
    print("start it", flush=True)
    browser.wait_for("document.getElementById('connection').textContent === 'live'")
    assert browser.value("document.getElementById('notice').hidden")
    assert text(browser, "about") != before, f"still the same daemon: {before}"
    browser.wait_for("document.querySelectorAll('#events [data-event=opened]').length === 1")


if __name__ == "__main__":
    main()
