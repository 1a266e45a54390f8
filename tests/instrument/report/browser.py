"""A real headless Chromium, as Debian's `chromium` and `chromium-driver` install it; or the reason why there is none."""

import importlib.util
import shutil


def missing():
    """Why no browser can be had; None where it can."""
    if importlib.util.find_spec("selenium") is None:
        return "selenium is not installed: pip install 'latent-drift[browser-test]'"
    names = [name for name, found in (("chromium", binary()), ("chromium-driver", shutil.which("chromedriver"))) if found is None]
    return f"{' and '.join(names)} cannot be found: apt-get install chromium chromium-driver" if names else None


def binary():
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def start():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary()
    # --no-sandbox: containers and CI run as root, where Chromium's sandbox cannot be set up; it opens only files that the tests wrote.
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--window-size=1100,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def screen(driver, width, height=900, *, dark=False, media=""):
    """Make the page believe in a screen of this size, in this mode, or in paper (`media="print"`)."""
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500})
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
