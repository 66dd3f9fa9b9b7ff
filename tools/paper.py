"""The page docs/paper.md as PDF, by headless Chromium: build/paper.pdf

    python tools/paper.py            needs Chromium (Debian: chromium)
    python tools/paper.py --html     the page alone: build/paper.html
    python tools/paper.py --table    the page's table anew, from reports/paper/verdict.json
"""
import argparse, json, re, subprocess, tempfile
from pathlib import Path

from markdown_it import MarkdownIt

from browser import CHROMIUM

ROOT = Path(__file__).resolve().parents[1]
PAGE, PLACE = ROOT / "docs/paper.md", "https://github.com/raptor-nb/raptor_nb/blob/main/"
STYLE = """
@page { size: A4; margin: 17mm 16mm }
body { font: 10.2pt/1.38 Georgia, "DejaVu Serif", serif; color: #111 }
h1 { font-size: 19pt; line-height: 1.15 } h2 { font-size: 13pt; margin: 1.3em 0 .3em }
h1, h2, h3, th { font-family: Helvetica, "DejaVu Sans", sans-serif } h3 { font-size: 11pt }
blockquote { margin: 0 0 1em; font-style: italic } a { color: #14508c; text-decoration: none }
img { max-width: 100%; display: block; margin: .6em auto } h2, h3 { break-after: avoid }
table { border-collapse: collapse; width: 100%; font-size: 8.4pt; margin: .6em 0 }
td, th { border-bottom: .5pt solid #aaa; padding: 2.5pt 4pt; text-align: left; vertical-align: top }
tr, img, pre { break-inside: avoid } pre { white-space: pre-wrap; font-size: 8pt }
code { font-size: 8.6pt }
"""


BEGIN, END = "<!-- table: python tools/paper.py --table -->", "<!-- end of the table -->"
HEAD = """| | paper | published policy, flown here | ours | ours, real drones | difference of manner |
| --- | --- | --- | --- | --- | --- |"""


def text(x): return "" if x is None else f"{x:.3g}" if isinstance(x, (int, float)) else x


def line(row):
    "A row of the report as a row of the page; bold: worse than what is asked"
    ours = f"**{text(row['value'])}**" if row["met"] is False else text(row["value"])
    name = f"{row['name']}, {row['unit']}" if row["unit"] else row["name"]
    cells = name, text(row["paper"]), text(row["published"]), ours, text(row.get("real")), row["manner"]
    return f"| {' | '.join(cells)} |"


def table(rows):
    "Rows that lie beside the paper; of held-out drones those along a path"
    def shown(r):
        number = isinstance(r.get("paper"), (int, float))
        beside = "manner" in r and (r["published"] is not None or number)
        return beside and "published policy" not in r["name"] and ("held-out" not in r["name"] or r["name"].startswith("RMSE"))
    own = filter(shown, rows)
    return "\n".join([BEGIN, "", HEAD, *map(line, own), "", END])


def write_table():
    rows = json.loads((ROOT / "reports/paper/verdict.json").read_text(encoding="utf-8"))
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + table(rows) + rest.partition(END)[2], encoding="utf-8")


def addresses(html):
    "Pictures by their files, links to other pages by their public place"
    def file(match): return f'src="{(PAGE.parent / match[1]).resolve().as_uri()}"'
    def place(match):
        target = (PAGE.parent / match[1]).resolve()
        return f'href="{PLACE}{target.relative_to(ROOT).as_posix()}'
    html = re.sub(r'src="([^":]+)"', file, html)
    return re.sub(r'href="(?!https?:|#)([^"#]+)', place, html)


def page():
    "-> HTML"
    text = MarkdownIt("commonmark").enable("table").render(PAGE.read_text(encoding="utf-8"))
    return f'<!doctype html><meta charset="utf-8"><style>{STYLE}</style>{addresses(text)}'


def print_page(html, pdf):
    "Raises SystemExit"
    if not CHROMIUM: raise SystemExit("paper: Chromium is not installed (Debian: chromium)")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu",
                        f"--user-data-dir={folder}", "--no-pdf-header-footer",
                        f"--print-to-pdf={pdf}", html.as_uri()],
                       check=True, capture_output=True, timeout=300)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--html", action="store_true", help="the page alone")
    parser.add_argument("--table", action="store_true", help="the table alone, in its page")
    args = parser.parse_args()
    if args.table: return write_table()
    html, pdf = ROOT / "build/paper.html", ROOT / "build/paper.pdf"
    html.parent.mkdir(exist_ok=True)
    html.write_text(page(), encoding="utf-8")
    if args.html: return print(html)
    print_page(html, pdf)
    print(f"{pdf}, {pdf.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__": main()
