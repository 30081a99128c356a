#!/usr/bin/env python3
"""Pictures of a report page in a real browser, to be looked at: phone and desk, light and dark, and on paper.

    python3 tests/python/report_screenshots.py DIR/report.html PICTURES [--chromium chromium]

Writes PICTURES/{phone,desk}-{light,dark}.png of the whole page and PICTURES/print.pdf, and fails if the page is wider than
the window anywhere, asks for anything from elsewhere, or logs an error. Needs Chromium and PyPI `websocket-client`; not part of
.ci/run.
"""

import argparse
import atexit
import base64
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

import websocket

SIZES = {"phone": (390, 2.0), "narrow": (320, 1.0), "desk": (1280, 1.0)}


class Browser:
    """A headless Chromium, spoken to over its debugging port."""

    def __init__(self, program, profile):
        arguments = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
                     "--remote-allow-origins=*", "--hide-scrollbars", f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = pathlib.Path(profile) / "DevToolsActivePort"
        for _ in range(600):
            if port_file.exists() and port_file.read_text().strip():
                break
            time.sleep(0.1)
        port = port_file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            page = next(t for t in json.load(answer) if t["type"] == "page")
        self.socket = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=300)
        self.count, self.events = 0, []

    def ask(self, method, **params):
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.count:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self.events.append(message)

    def value(self, expression):
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=pathlib.Path)
    parser.add_argument("pictures", type=pathlib.Path)
    parser.add_argument("--chromium", default="chromium")
    options = parser.parse_args()
    options.pictures.mkdir(parents=True, exist_ok=True)
    wrong = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(options.chromium, profile)
        atexit.register(browser.process.kill)
        for domain in ["Page", "Network", "Log", "Runtime"]:
            browser.ask(f"{domain}.enable")
        for size, (width, scale) in SIZES.items():
            for theme in ["light", "dark"]:
                browser.ask("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=scale,
                            mobile=size != "desk")
                browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
                browser.ask("Page.navigate", url=options.page.resolve().as_uri())
                while browser.value("document.readyState") != "complete":
                    time.sleep(0.05)
                found = browser.value("document.documentElement.scrollWidth")
                if found > width:
                    wrong.append(f"{size} {theme}: the page is {found} wide in a window of {width}")
                # Also with all that is folded.
                browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
                if browser.value("document.documentElement.scrollWidth") > width:
                    wrong.append(f"{size} {theme}: unfolded, the page is wider than the window")
                browser.value("document.querySelectorAll('details').forEach(d => d.open = false)")
                picture = browser.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True,
                                      clip=clip(browser, width))
                (options.pictures / f"{size}-{theme}.png").write_bytes(base64.b64decode(picture["data"]))
        browser.ask("Emulation.clearDeviceMetricsOverride")
        pdf = browser.ask("Page.printToPDF", printBackground=False, preferCSSPageSize=True)
        (options.pictures / "print.pdf").write_bytes(base64.b64decode(pdf["data"]))
        asked = {e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"}
        wrong += [f"the page asks for {url}" for url in asked if url != options.page.resolve().as_uri()]
        wrong += [e["params"]["entry"]["text"] for e in browser.events if e["method"] == "Log.entryAdded"]
        browser.close()
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return 1 if wrong else 0


def clip(browser, width):
    height = browser.value("document.documentElement.scrollHeight")
    return {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}


if __name__ == "__main__":
    sys.exit(main())
