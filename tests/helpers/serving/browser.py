"""Debian's Chromium without a window, driven by Selenium."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from selenium import webdriver

# The names of Debian, Fedora and Google.
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser with an empty profile."""
    driver, browser = (
        shutil.which("chromedriver"),
        next(filter(None, map(shutil.which, _BROWSERS)), None),
    )
    if driver is None or browser is None:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for word in ("--headless", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
                     "--no-proxy-server", "--no-first-run", "--disable-background-networking",
                     f"--user-data-dir={profile}"):  # fmt: skip
            options.add_argument(word)
        found = webdriver.Chrome(options, webdriver.ChromeService(driver))
        try:
            yield found
        finally:
            found.quit()


def resize(driver: webdriver.Chrome, width: int, height: int = 900) -> None:
    """Set the size of the page itself: a window cannot be as narrow as a phone."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def prefer(driver: webdriver.Chrome, scheme: str) -> None:
    """Prefer "light" or "dark" colours."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
