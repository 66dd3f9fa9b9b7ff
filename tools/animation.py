"""docs/_static/fly.webp, the animation of the README: the page that flies, recorded in Chromium

Needs Chromium and its driver (Debian: chromium, chromium-driver). Run it when the page or the student is replaced.
"""
import argparse
import io
from pathlib import Path

from PIL import Image

import browser as chromium
from raptor_nb.core.records import atomic

ROOT = Path(__file__).resolve().parents[1]
SIZE = 800, 450          # px
FRAME = .1               # s of flight a picture
CAPTION = """
const p = document.createElement('p');
p.id = 'caption';
p.style = 'position:fixed;right:18px;top:14px;width:380px;margin:0;text-align:right;z-index:3;'
  + 'font:600 19px/1.3 system-ui,sans-serif;color:var(--text)';
document.body.append(p);
const style = document.createElement('style');
style.textContent = '#caption i { font-style: normal; color: var(--student) } #caption b { color: var(--published) }';
document.head.append(style);
document.querySelector('.over').hidden = true;
"""
SLIDE = """
const slider = document.getElementById(arguments[0]);
slider.value = arguments[1];
slider.dispatchEvent(new Event('input'));
"""
# what happens: s of flight, the words, and a script or a slider with its place between 0 and 1
SCENES = [
    (2.4, "<i>Ours</i> and the <b>published</b> policy,<br>not told what they fly", ()),
    (3.0, "A push: 1 m/s to the side", "raptor.world.poke()"),
    (3.6, "Half the thrust, in flight", ("thrustToWeight", .16)),
    (3.6, "A constant force of 0.1 weight", ("wind", .3333)),
]


def record(driver):
    "Pictures of the page"
    def picture(): return Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    chromium.resize(driver, *SIZE)
    chromium.scheme(driver, dark=False)
    driver.get((ROOT / "web/fly.html").as_uri() + "?embed&policy=both")
    driver.execute_script("raptor.app.paused = true; raptor.world.seed(1);" + CAPTION)
    driver.execute_script(SLIDE, "thrustToWeight", .6)
    driver.execute_script("raptor.world.restart()")
    pictures = []
    for seconds, words, act in SCENES:
        driver.execute_script("document.getElementById('caption').innerHTML = arguments[0]", words)
        if isinstance(act, str): driver.execute_script(act)
        elif act: driver.execute_script(SLIDE, *act)
        for _ in range(round(seconds / FRAME)):
            driver.execute_script("raptor.advance(arguments[0])", FRAME)
            pictures.append(picture())
    return pictures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/_static/fly.webp")
    parser.add_argument("--quality", type=int, default=60, help="0 to 100")
    given = parser.parse_args()
    if why := chromium.missing(): raise SystemExit(why)
    driver = chromium.open_browser(*SIZE)
    try: first, *others = record(driver)
    finally: driver.quit()
    with atomic(given.out) as temporary:
        first.save(temporary, "WEBP", save_all=True, append_images=others, duration=round(1000 * FRAME), loop=0,
                   quality=given.quality, method=6, minimize_size=True)
    print(f"{given.out}: {len(others) + 1} pictures, {given.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__": main()
