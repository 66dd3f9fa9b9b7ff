"Chromium without a window, for the tests of the page that flies and for pictures of the site"
import shutil

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
WORDS = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars",
         "--use-angle=swiftshader", "--enable-unsafe-swiftshader",   # WebGL in software
         "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]   # it calls nobody


def missing():
    "One sentence on what is not here, or None"
    if not (CHROMIUM and DRIVER): return "Chromium and its driver are not installed (Debian: chromium, chromium-driver)"
    try: import selenium.webdriver  # noqa: F401
    except ImportError: return "selenium is not installed (pip install selenium)"


def open_browser(width=1000, height=700):
    "A driver; it draws in software"
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in (*WORDS, f"--window-size={width},{height}"): options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(120); driver.set_script_timeout(120)
    return driver


def resize(driver, width, height, phone=False):
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(width=width, height=height, deviceScaleFactor=1, mobile=phone))


def download_to(driver, folder):
    "Where files go that a page hands out"
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", dict(behavior="allow", downloadPath=str(folder)))


def scheme(driver, dark): driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(features=[dict(name="prefers-color-scheme", value="dark" if dark else "light")]))


def complaints(driver): return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
