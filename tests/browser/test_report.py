"""The report of a small experiment in a real browser."""
from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
import time

import pytest
from builders.experiment import HOSTILE, make_experiment, make_hostile_experiment, report


class Browser:
    """Headless Chromium over its debugging pipe (file descriptors 3 and 4, messages end with a zero byte)."""

    def __init__(self, binary):
        self.profile = tempfile.mkdtemp(prefix="essence-chromium-")
        theirs_in, self.out = os.pipe()
        self.inlet, theirs_out = os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (theirs_in, theirs_out)]

        def hand_over():
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self.process = subprocess.Popen(
            [binary, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
             "--remote-debugging-pipe", f"--user-data-dir={self.profile}", "about:blank"],
            preexec_fn=hand_over, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for fd in (theirs_in, theirs_out, *high):
            os.close(fd)
        self.rest, self.number, self.events, self.session = b"", 0, [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _receive(self):
        while b"\0" not in self.rest:
            data = os.read(self.inlet, 1 << 16)
            if not data:
                raise RuntimeError("chromium has ended")
            self.rest += data
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, path, width, dark):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=True)
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self._receive())

    def evaluate(self, expression):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def close(self):
        self.session = None
        os.write(self.out, json.dumps({"id": 0, "method": "Browser.close"}).encode() + b"\0")
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.out)
        os.close(self.inlet)
        shutil.rmtree(self.profile, ignore_errors=True)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    exp, data = make_experiment(tmp_path_factory.mktemp("run"))
    assert report(exp) == 0
    return exp, data


@pytest.fixture(scope="module")
def browser():
    opened = Browser(next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))))
    yield opened
    opened.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_page_in_a_browser(experiment, browser, width, dark):
    browser.open(experiment[0] / "report" / "report.html", width, dark)
    said = [e for e in browser.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert not said, said
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert all(url.startswith(("file:", "data:")) for url in asked) and len(asked) >= 1
    wide = browser.evaluate("[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > "
                            "innerWidth + 1).map(e => e.outerHTML.slice(0, 120)).slice(0, 3)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width and not wide, wide
    images = browser.evaluate("[...document.images].map(i => i.complete && i.naturalWidth)")
    assert images == [180]  # the alignment's 180 frames
    paper, ink = browser.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink)]
    assert (brightness[0] < brightness[1]) == dark
    lines = browser.evaluate("[...document.querySelectorAll('path.line')].map(p => p.getBoundingClientRect().width)")
    # f_k; two or three curves of each of five models; WER against k and its baseline; two systems and the diagonal
    assert len(lines) == 13 + 2 + 3 and min(lines) > 100


def test_sounds_can_be_played(experiment, browser):
    browser.open(experiment[0] / "report" / "report.html", 390, False)
    browser.evaluate("document.querySelectorAll('audio').forEach(a => { a.preload = 'auto'; a.load(); })")
    for _ in range(100):
        seconds = browser.evaluate("[...document.querySelectorAll('audio')].map("
                                   "a => a.error ? -1 : a.readyState && a.duration)")
        if all(seconds):
            break
        time.sleep(0.1)
    assert len(seconds) == 4 and all(0.9 < s < 1.3 for s in seconds), seconds


def test_texts_of_others_stay_texts(tmp_path, browser):
    exp, _ = make_hostile_experiment(tmp_path)
    assert report(exp) == 0
    page = exp / "report" / "report.html"
    browser.open(page, 1280, False)
    time.sleep(0.5)  # for what would run late
    said = [e for e in browser.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded",
                                                             "Page.javascriptDialogOpening")]
    assert not said, said
    asked = {e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}
    assert browser.evaluate("typeof window.hacked") == "undefined"
    odd = "script, iframe, link, base, object, embed, form, [onload], [onerror], [onfocus], [onmouseover], [href]"
    assert browser.evaluate(f"document.querySelectorAll('{odd}').length") == 0
    assert browser.evaluate("document.querySelectorAll('style').length") == 1
    assert browser.evaluate("location.href") == page.as_uri()
    text = browser.evaluate("document.body.innerText")
    shown = [word for word in HOSTILE if word.isprintable() and word in text]
    assert len(shown) > 12 and "49" not in browser.evaluate("document.querySelector('.words').innerText")
    assert "\\u202eevil" in text and not set("\x1b\x07\x08\u202e\u2066") & set(page.read_text())


def test_the_policy_of_the_page_forbids_scripts_and_requests(experiment, browser, tmp_path):
    """Were a text not escaped, it would still do nothing."""
    page = tmp_path / "report.html"
    text = (experiment[0] / "report" / "report.html").read_text()
    page.write_text(text.replace("<h1>", "<script>window.hacked = 1</script><img src=http://192.0.2.1/x.png "
                                 "onerror='window.hacked = 2'><h1>"))
    browser.open(page, 1280, False)
    assert browser.evaluate("typeof window.hacked") == "undefined"
    blocked = [e["params"]["entry"]["text"] for e in browser.events if e.get("method") == "Log.entryAdded"]
    assert len(blocked) >= 2 and all("Content Security Policy" in line for line in blocked), blocked
