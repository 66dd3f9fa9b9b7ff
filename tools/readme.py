"README.md from nbs/index.ipynb, without Quarto. `--check` only says whether README.md is up to date."
import json, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def readme(notebook):
    "The cells as one markdown text: code in fences, directives and hidden cells gone, links to notebooks from the root"
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"]).strip("\n")
        if re.search(r"^#\|\s*hide\b", text, re.M): continue
        if cell["cell_type"] == "code":
            text = "\n".join(line for line in text.splitlines() if not line.startswith("#|")).strip("\n")
            text = f"```python\n{text}\n```" if text else ""
        else: text = re.sub(r"\]\(([\w/]+\.ipynb)", r"](nbs/\1", text).replace("](../", "](")
        if text: parts.append(text)
    return "\n\n".join(["<!-- made by `make prepare` from nbs/index.ipynb -->", *parts]) + "\n"


def main():
    target, text = ROOT / "README.md", readme(ROOT / "nbs/index.ipynb")
    if "--check" not in sys.argv[1:]: target.write_text(text, encoding="utf-8")
    elif not target.exists() or target.read_text(encoding="utf-8") != text:
        raise SystemExit("README.md is not what nbs/index.ipynb gives: run `make readme`")


if __name__ == "__main__": main()
