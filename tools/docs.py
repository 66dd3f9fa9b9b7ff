"""The documentation site, without Quarto: nbs/ -> executed -> nbdev's rendering -> Sphinx -> _docs/

build/executed   the notebooks, executed as nbdev_test does (same shell, IN_TEST=1); one is executed again when it or the library changed.
                 A stage with a report that was made by the very same cells shows the outputs of that report instead of a trial's
_proc            the same after nbdev's processors: exported cells gone, their documentation in
build/docs       what Sphinx reads: those notebooks in its dialect, the pages of docs/, the reports, the sources, the page that flies
"""
import argparse, ast, contextlib, hashlib, importlib, importlib.util, multiprocessing, os, pkgutil, re, shutil, subprocess, sys
from concurrent.futures import ProcessPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import yaml
from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from nbdev.config import get_config
from nbdev.serve import proc_nbs
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

import fly

ROOT = Path(__file__).resolve().parents[1]
EXECUTED, SOURCES, SITE = Path("build/executed"), Path("build/docs"), Path("_docs")
PAGES = {"docs/quickstart.md": "quickstart.md", "docs/see_it_fly.md": "see_it_fly.md", "docs/server.md": "server.md", "docs/android.md": "android.md",
         "docs/microcontroller.md": "microcontroller.md", "docs/javascript.md": "javascript.md", "docs/flight_stacks.md": "flight_stacks.md", "docs/bad_input.md": "bad_input.md",
         "docs/cite.md": "cite.md", "raptor_nb/weights/README.md": "weights.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
SECTIONS = {"Start": ["quickstart", "see_it_fly"], "Deploy": ["server", "android", "microcontroller", "javascript", "flight_stacks"],
            "Reference": ["api", "weights", "bad_input", "benchmarks"], "Project": ["changelog", "contributing", "cite"]}
FLYING = """<iframe class="fly" src="fly.html?embed&amp;policy=both&amp;eight" title="Drones in flight: ours in blue, published in orange" loading="lazy"></iframe>

Ours in blue, the published policy in orange, the same drone. [Change the drone, poke it, drag its target](see_it_fly.md)."""
DIRECTIVE = re.compile(r"^#\|\s*([\w-]+):?\s*(.*)$")


def notebooks(folder):
    "Notebooks below `folder` in reading order, without hidden ones and drafts"
    return sorted(p for p in folder.rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(folder).parts))


def show_sources(nb):
    "Have nbdev keep the source of exported cells, folded away (all but those that only import)"
    for cell in nb.cells:
        if cell.cell_type == "code" and re.search(r"^\s*(def|class|@|\w+\s*=)", cell.source, flags=re.M):
            cell.source = re.sub(r"^#\|\s*export\s*$", "#| exports", cell.source, flags=re.M)


def recorded(path):
    "The executed report with every code cell of this notebook, and its outputs by source; or None: it was never run as it stands"
    code = lambda file: [c for c in nbformat.read(file, as_version=4).cells if c.cell_type == "code"]
    wanted = {c.source for c in code(path)}
    for report in sorted(Path("reports").glob(f"*/{path.name}")):
        outputs = {c.source: c.outputs for c in code(report)}
        if wanted <= set(outputs): return report, outputs


def keep(nb, path):
    "An executed notebook, into build/executed"
    show_sources(nb)
    out = EXECUTED / path.relative_to("nbs")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_nb(nb, out)


def take_over(path, report, outputs):
    "The notebook with the outputs of the report, into build/executed"
    nb = read_nb(path)
    for cell in nb.cells:
        if cell.cell_type == "code": cell.outputs = outputs[cell.source]
    first = next(c for c in nb.cells if c.cell_type == "markdown")
    first.source += f"\n\n*What the cells show is from the run in [{report.parent.as_posix()}](../{report.parent.as_posix()}/index.md).*"
    keep(nb, path)


def execute(path):
    "One notebook into build/executed, in this process. Raises SystemExit if it does not run"
    os.environ["IN_TEST"] = "1"
    nb, shell = read_nb(path), CaptureShell(path, mpl_format="png")
    with contextlib.chdir(path.parent): shell.run_all(nb, preproc=lambda cell: shell.exc is not None)
    if shell.exc: raise SystemExit(f"{path} does not run, so the site was not built: {type(shell.exc).__name__}: {shell.exc}")
    keep(nb, path)


def execute_all(jobs):
    "The notebooks that changed, or all without a report if the library did: in processes that find the libraries imported already; the long ones first"
    files = notebooks(Path("nbs"))
    library = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(Path("raptor_nb").rglob("*")) if p.suffix in {".py", ".cpp"})).digest()
    reports = {p: found for p in files if (found := recorded(p))}
    keys = {p: hashlib.sha256(p.read_bytes() + (reports[p][0].read_bytes() if p in reports else library)).hexdigest() for p in files}
    notes = {p: (EXECUTED / p.relative_to("nbs")).with_suffix(".key") for p in files}
    for old in notebooks(EXECUTED) if EXECUTED.exists() else []:
        if not (Path("nbs") / old.relative_to(EXECUTED)).exists(): old.unlink()
    changed = [p for p in files if not (notes[p].exists() and notes[p].read_text() == keys[p] and notes[p].with_suffix(".ipynb").exists())]
    for path in [p for p in changed if p in reports]:
        take_over(path, *reports[path])
        notes[path].write_text(keys[path])
        print(f"{path}: from {reports[path][0].parent}", flush=True)
        changed.remove(path)
    if not changed: return
    for name in ("matplotlib.pyplot", "onnxruntime", "papermill", *(m.name for m in pkgutil.walk_packages(["raptor_nb"], "raptor_nb."))): importlib.import_module(name)
    changed.sort(key=lambda p: (p.name[:2].isdigit(), p.name), reverse=True)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        for path, _ in zip(changed, pool.map(execute, changed)):
            notes[path].write_text(keys[path])
            print(f"{path}: executed", flush=True)


def directives(cell):
    "The `#| name: value` lines of a cell, which are taken out of it"
    found, rest = {}, []
    for line in cell.source.splitlines():
        match = DIRECTIVE.match(line)
        if match: found[match[1]] = match[2]
        else: rest.append(line)
    cell.source = "\n".join(rest).strip("\n")
    return found


def localise(text, up):
    "Links to the published site and to the library's repository -> pages of this site; Quarto's callouts -> Sphinx's"
    cfg = get_config()
    site = re.escape(f"{cfg.doc_host}{cfg.doc_baseurl}/")
    library = re.escape(f"{cfg.git_url}/blob/{cfg.branch}/")
    text = re.sub(rf'\[source\]\({library}([\w/]+)\.py(?:#L(\d+))?\)(\{{[^}}]*\}})?',
                  lambda m: f'<a class="source" href="{up}source/{m[1]}.html#L-{m[2] or 1}">source</a>', text)
    text = re.sub(rf"{site}([\w/]+)\.html", lambda m: f"{up}{m[1]}.ipynb", text)
    text = re.sub(r"\]\((?:\.\./)+nbs/([\w/]+\.ipynb)", rf"]({up}\1", text)
    text = re.sub(r"(\]\((?!https?:)[./\w]*?)\d\d_(\w+\.ipynb)", r"\1\2", text)
    for source, name in PAGES.items(): text = re.sub(rf"\]\((\.\./)*{re.escape(source)}\)", f"]({up}{name})", text)
    text = re.sub(r"\]\((?:\.\./)+reports/", f"]({up}reports/", text)
    text = re.sub(r"\[([^\]]+)\]\((?:[^)\s]*#_\w+|\.\./concepts/[^)\s]*)\)", r"\1", text)   # private names have no place here, pydantic's docstrings link into its own site
    text = re.sub(r"\{\.unnumbered\}|\{\.unlisted\}", "", text)
    return re.sub(r"^:::\s*\{\.callout-(note|tip|warning|important|caution)[^}]*\}", r":::{\1}", text, flags=re.M)


def documented(text):
    "What show_doc gives, in a box"
    text = re.sub(r"^\s*---\s*", "", text)
    text = re.sub(r"```python\s*\n(.*?)\s*```", r"```python\n\1\n```", text, flags=re.S)
    name = re.search(r"^#+ ([\w.]+)", text, flags=re.M)
    anchor = f'<span id="api-{name[1].lower()}"></span>\n\n' if name else ""
    return f"{anchor}::::{{container}} api\n\n{text.strip()}\n\n::::"


def shown(cell):
    "The outputs that a page can show: widgets need a kernel, warnings are for those who run it, and a cleared output has nothing in it"
    widget, cleared = "application/vnd.jupyter.widget-view+json", "\x1b[2K"
    said = lambda o: o.name != "stderr" and o.text.replace(cleared, "").strip()
    return [o for o in cell.outputs if (said(o) if o.output_type == "stream" else widget not in o.get("data", {}))]


def convert_cell(cell, up):
    "One processed cell in Sphinx's dialect, or None"
    new = nbformat.v4
    if cell.cell_type == "markdown":
        text = localise(cell.source, up)
        return None if text.strip().startswith("<!-- WARNING") or not text.strip() else new.new_markdown_cell(text)
    given = directives(cell)
    if given.get("output") == "asis":
        text = "\n\n".join("".join(o.get("data", {}).get("text/markdown", o.get("text", ""))) for o in cell.outputs)
        return new.new_markdown_cell(documented(localise(text, up))) if text.strip() else None
    if not cell.source.strip() and not cell.outputs: return None
    tags = [t for t in cell.metadata.get("tags", []) if t != "parameters"]
    if given.get("echo") == "false": tags.append("remove-input")
    if given.get("include") == "false": return None
    if "code-fold" in given or "exports" in given: tags.append("hide-input")
    return new.new_code_cell(cell.source, outputs=shown(cell), metadata={"tags": tags})


def write(cells, out):
    "A notebook of these cells"
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    out.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), out)


def convert(path, out):
    "One page; its first cell is the notebook's own, of which nbdev keeps title and subtitle only"
    nb, own = (nbformat.read(p, as_version=4) for p in (path, EXECUTED / path.relative_to("_proc")))
    up = "../" * (len(out.relative_to(SOURCES).parts) - 1)
    first = next(c for c in own.cells if c.cell_type == "markdown")
    cells = [c for c in (convert_cell(cell, up) for cell in [first, *nb.cells] if cell.cell_type != "raw") if c]
    write(cells, out)


def page(path):
    "Where a rendered notebook goes: without the number, as nbdev names its pages"
    return SOURCES / path.relative_to("_proc").with_name(re.sub(r"^\d+_", "", path.name))


def source_pages():
    "The library with numbered lines, for the links beside every definition"
    for path in sorted(Path("raptor_nb").rglob("*.py")):
        out = SOURCES / "extra/source" / path.with_suffix(".html")
        out.parent.mkdir(parents=True, exist_ok=True)
        style = HtmlFormatter(full=True, title=str(path), linenos="inline", lineanchors="L", anchorlinenos=True)
        out.write_text(highlight(path.read_text(), PythonLexer(), style))


def report_cell(cell, up):
    "A cell of an executed report: what it shows, with the code folded away; its links stand as in nbs/"
    if cell.cell_type == "markdown": return nbformat.v4.new_markdown_cell(localise(re.sub(r"\]\((?=[\w/]+\.ipynb)", f"]({up}", cell.source), up))
    if cell.cell_type != "code" or not cell.outputs: return None
    directives(cell)
    return nbformat.v4.new_code_cell(cell.source, outputs=shown(cell), metadata={"tags": ["hide-input"]})


def report_notebook(path):
    "An executed stage as a page; which, and its title"
    nb, out = nbformat.read(path, as_version=4), SOURCES / path
    cells = [c for c in (report_cell(cell, "../../") for cell in nb.cells) if c]
    title = next((m[1] for c in cells if c.cell_type == "markdown" for m in [re.search(r"^# (.+)$", c.source, flags=re.M)] if m), path.stem)
    write(cells, out)
    return path.stem, title


def report_pages():
    "A page a report: its figures, its executed stages, its verdict"
    names = []
    for folder in sorted(p for p in Path("reports").iterdir() if p.is_dir()):
        out = SOURCES / folder
        shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.ipynb", "*.html"))
        for file in (p for p in folder.rglob("*") if p.suffix in {".json", ".csv"}):
            (SOURCES / "extra" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, SOURCES / "extra" / file)
        stages = [report_notebook(p) for p in notebooks(folder)]
        figures = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
        about = out / "README.md"
        lines = [localise(about.read_text(), "../../") if about.exists() else f"# {folder.name}\n\nAn executed run: what went in, what came out, and whether it is good.", ""]
        about.unlink(missing_ok=True)
        lines += [f"- [{title}]({stem}.ipynb)" for stem, title in stages]
        lines += [f'- <a href="{p.relative_to(folder).as_posix()}">{p.name}</a>' for p in sorted(folder.rglob("*")) if p.suffix in {".json", ".csv"}]
        lines += ["", *(f"![{Path(name).stem.replace('_', ' ')}]({name})\n" for name in figures if about.name not in name)]
        lines += [toctree("Stages", [stem for stem, _ in stages])] if stages else []
        (out / "index.md").write_text("\n".join(lines) + "\n")
        names.append(f"{folder.as_posix()}/index")
    return names


def benchmark_page():
    "The measured figures of the changelog as a page of their own"
    text = Path("CHANGELOG.md").read_text()
    found = re.search(r"^### Measured\n(.*?)(?=^##)", text, flags=re.M | re.S)
    if not found: raise SystemExit("CHANGELOG.md has no section 'Measured', from which the page of benchmarks is made")
    (SOURCES / "benchmarks.md").write_text(f"# Benchmarks\n\nEvery measured figure, from the changelog; `make bench` runs the programs of `benchmarks/`.\n{localise(found[1], '')}")


def first_line(node):
    "Of a docstring, with what would be markdown escaped"
    return re.sub(r"([|<*_])", r"\\\1", (ast.get_docstring(node) or "").split("\n")[0])


def api_page():
    "Every public name with its signature, its page and its source"
    lines = ["# API", "", "Everything public, by module. A name leads to its documentation, the number to its source.", ""]
    for path in sorted(Path("raptor_nb").rglob("*.py")):
        tree = ast.parse(path.read_text())
        public = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"), [])
        nodes = {n.name: n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name in public}
        if not nodes: continue
        name = path.with_suffix("").as_posix()
        lines += [f"## {name.replace('/', '.')}", "", re.sub(r"([|<*])", r"\\\1", ast.get_docstring(tree) or ""), "", "| name | what it does | line |", "| --- | --- | --- |"]
        for n in sorted(nodes.values(), key=lambda n: n.lineno):
            page = f"{name.removeprefix('raptor_nb/')}.html#api-{n.name.lower()}"
            lines.append(f'| <a href="{page}"><code>{n.name}</code></a> | {first_line(n)} | <a href="source/{name}.html#L-{n.lineno}">{n.lineno}</a> |')
        lines.append("")
    (SOURCES / "api.md").write_text("\n".join(lines) + "\n")


def mathjax():
    "MathJax in one file that needs neither network nor fonts"
    found = importlib.util.find_spec("sphinx-mathjax-offline")
    if not found: raise SystemExit("the formulas of the site need MathJax: pip install sphinx-mathjax-offline, or set up again")
    out = SOURCES / "_static/mathjax"
    out.mkdir(parents=True)
    shutil.copy2(Path(found.submodule_search_locations[0]) / "static/mathjax/tex-svg.js", out)


def toctree(caption, pages):
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])


def contents(reports):
    "The site's table of contents, appended to the front page; a notebook that has no place in it yet comes last"
    have = {p.relative_to(SOURCES).with_suffix("").as_posix() for p in notebooks(SOURCES)} - {"index"}
    sidebar = yaml.safe_load(Path("nbs/sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    placed = {part["section"]: [re.sub(r"^\d+_", "", name.removesuffix(".ipynb")) for name in part["contents"]] for part in sidebar if isinstance(part, dict)}
    placed["More"] = sorted(n for n in have - {p for part in placed.values() for p in part} if not n.startswith("reports/"))
    parts = {name: [p for p in part if p in have] for name, part in placed.items()}
    parts = {"Start": SECTIONS["Start"] + parts.pop("Start", [])} | parts | {"Reports": reports} | {name: SECTIONS[name] for name in ("Deploy", "Reference", "Project")}
    return nbformat.v4.new_markdown_cell("\n".join(toctree(name, part) for name, part in parts.items() if part))


def gather():
    "Everything that Sphinx reads, in build/docs"
    shutil.rmtree(SOURCES, ignore_errors=True)
    shutil.copytree("docs", SOURCES)
    (SOURCES / "extra").mkdir()
    for path in notebooks(Path("_proc")): convert(path, page(path))
    for source, name in PAGES.items(): (SOURCES / name).write_text(localise(Path(source).read_text(), ""))
    reports = report_pages()
    source_pages(); api_page(); benchmark_page(); mathjax()
    fly.write_page(SOURCES / "extra/fly.html")
    front_page = SOURCES / "index.ipynb"
    nb = nbformat.read(front_page, as_version=4)
    for cell in nb.cells: cell.source = re.sub(r"^!\[[^\]]*\]\([^)]*reports/site/fly\.png\)$", lambda _: FLYING, cell.source, flags=re.M)   # the page itself, in place of its picture
    nb.cells.append(contents(reports))
    nbformat.write(nb, front_page)


class Links(HTMLParser):
    "Where a page leads, and the places in it"
    def __init__(self, path):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(path.read_text(encoding="utf-8", errors="replace"))

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("id", "name") and value: self.ids.add(value)
            elif name in ("href", "src") and value: self.links.append(value)


def broken_links(site):
    "Every link within the site that leads nowhere"
    pages = {p.resolve(): Links(p) for p in site.rglob("*.html") if "_static" not in p.parts}   # there lie templates of the theme
    for path, found in sorted(pages.items()):
        for link in found.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc: continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists(): yield f"{path.relative_to(site.resolve())}: {link}"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids: yield f"{path.relative_to(site.resolve())}: {link} (no such place in it)"


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    os.chdir(ROOT)
    execute_all(jobs=2)
    shutil.rmtree("_proc", ignore_errors=True)
    proc_nbs(str(EXECUTED), n_workers=0, force=True)
    gather()
    shutil.rmtree(SITE, ignore_errors=True)
    done = subprocess.run([sys.executable, "-m", "sphinx", "-q", "-j", "2", "-d", "build/doctrees", str(SOURCES), str(SITE)])
    if done.returncode: raise SystemExit("Sphinx did not finish: see above")
    broken = list(broken_links(SITE))
    if broken: raise SystemExit("\n".join(["links that lead nowhere:", *broken]))
    print(f"the site is in {SITE}/index.html; {len(list(SITE.rglob('*.html')))} pages, no broken link")


if __name__ == "__main__": main()
