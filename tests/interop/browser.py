"""A headless Chromium, driven through its DevTools: what a page says, asks for and looks like."""

import base64
import json
import os
import subprocess
import time

PROGRAM = "chromium-headless-shell"


class Browser:
    """One browser with one page. What the page complains about and what it loads is kept."""

    def __init__(self, directory):
        # Orders go in by its file 3, answers come out by 4. When nobody holds the other ends any more, it ends.
        orders, self.orders = os.pipe()
        self.answers, answers = os.pipe()
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                   "--remote-debugging-pipe", f"--user-data-dir={directory}"]
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{orders} 4>&{answers}', "bash", PROGRAM, *options],
            pass_fds=(orders, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(orders)
        os.close(answers)
        self.received = b""
        self.complaints, self.urls = [], []
        self.last, self.session = 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.orders)
        os.close(self.answers)
        self.process.wait()

    def receive(self):
        """The next message; each is ended by a zero byte."""
        while b"\0" not in self.received:
            piece = os.read(self.answers, 1 << 20)
            assert piece, f"{PROGRAM} ended"
            self.received += piece
        message, _, self.received = self.received.partition(b"\0")
        return json.loads(message)

    def send(self, message):
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.orders, data):]

    def call(self, method, **parameters):
        """Carries out one command; events that come before its answer are noted."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.send(message)
        while True:
            answer = self.receive()
            if answer.get("id") == self.last:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.note(answer.get("method"), answer.get("params"))

    def note(self, method, event):
        if method == "Runtime.exceptionThrown":
            self.complaints.append(event["exceptionDetails"])
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
            self.complaints.append(event["args"])
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.complaints.append(event["entry"])
        elif method == "Network.requestWillBeSent":
            self.urls.append(event["request"]["url"])

    def look_as(self, width, height, scheme):
        """The size of the window, and whether `light` or `dark` is wanted."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def value(self, script):
        """What an expression comes to in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, f"{script}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def wait_for(self, script, seconds=30):
        """Waits until an expression is true in the page; its value."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = self.value(script)
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"not so after {seconds} s: {script}")

    def screenshot(self, path):
        """The whole page, however long."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 8000), "scale": 1}
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        with open(path, "wb") as file:
            file.write(base64.b64decode(picture["data"]))
