"""A headless Chromium driven over WebDriver, with the standard library alone."""

import http.client
import json
import re
import shutil
import subprocess
import tempfile

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def missing():
    """What a browser test needs and this machine lacks, None where all is there."""
    lacking = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(lacking)} not found (Debian: chromium, chromium-driver)" if lacking else None


class Browser:
    """One session of one browser; a context manager."""

    def __enter__(self):
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            started = (re.search(r"started successfully on port (\d+)", line) for line in self._driver.stdout)
            self._port = int(next(match[1] for match in started if match))
            flags = [*FLAGS, f"--user-data-dir={self._profile.name}"]
            wanted = {
                "goog:chromeOptions": {"binary": shutil.which("chromium"), "args": flags},
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }
            session = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self._stop()
            raise
        self._path = f"/session/{session['sessionId']}"
        return self

    def __exit__(self, *_):
        try:
            self._send("DELETE", self._path)
        finally:
            self._stop()

    def _stop(self):
        self._driver.terminate()
        self._driver.wait(30)
        self._driver.stdout.close()
        self._profile.cleanup()

    def _send(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None)
            value = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(value, dict) and "error" in value:
            raise RuntimeError(f"{value['error']}: {value['message']}")
        return value

    def open(self, path):
        """Open a file and wait for it to load."""
        self._send("POST", f"{self._path}/url", {"url": path.resolve().as_uri()})

    def run(self, script):
        """Run the body of a JavaScript function in the page and return what it returns."""
        return self._send("POST", f"{self._path}/execute/sync", {"script": script, "args": []})

    def click(self, selector):
        """Click the first element that a CSS selector finds, as a user would."""
        self._send("POST", f"{self._path}/element/{self._find(selector)}/click", {})

    def press(self, selector, keys):
        """Type keys while that element has the focus."""
        self._send("POST", f"{self._path}/element/{self._find(selector)}/value", {"text": keys})

    def _find(self, selector):
        found = self._send("POST", f"{self._path}/element", {"using": "css selector", "value": selector})
        return next(iter(found.values()))

    def devtools(self, command, **parameters):
        """Send a command of the DevTools protocol."""
        return self._send("POST", f"{self._path}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def log(self, kind):
        """Return and empty a log: ``browser`` (the console) or ``performance`` (DevTools events)."""
        return self._send("POST", f"{self._path}/se/log", {"type": kind})
