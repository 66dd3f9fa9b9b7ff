"""The documentation in _docs/: Sphinx reads the repository as it is, this file is its extension

A notebook of nbs/ is executed in its folder, once for each state of its code and of the library
(outputs are kept in build/executed by jupyter-cache). A stage whose report was made by the very
same cells shows the outputs of that report and is not executed.
"""
import argparse, ast, hashlib, html, importlib, inspect, os, re, shutil, sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from fastcore.docments import DocmentTbl
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import single_nb_execution
from nbdev.showdoc import showdoc_nm
from nbformat.v4 import new_code_cell, new_markdown_cell
from sphinx.cmd.build import build_main
from sphinx.errors import SphinxError

import architecture

ROOT = Path(__file__).resolve().parents[1]
FLYING = """<iframe class="fly" src="../fly.html?embed&amp;policy=both&amp;eight" loading="lazy"
title="Drones in flight: ours in blue, published in orange"></iframe>

Ours in blue, the published policy in orange, the same drone.
[Change the drone, poke it, drag its target](../docs/see_it_fly.md)."""
PICTURE = re.compile(r"^!\[[^\]]*\]\([^)]*fly\.\w+\)$", flags=re.M)
DIRECTIVE = re.compile(r"^#\|\s*([\w-]+).*\n?", flags=re.M)
WIDGET, CLEARED = "application/vnd.jupyter.widget-view+json", "\x1b[2K"


def flying_page(out):
    "The page on which drones fly: web/fly.html, made from web/page.html, to go to the site"
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2("web/fly.html", out)


def state():
    "A hash of what a page depends on besides its notebook: library, packages, data, this file"
    files = [*Path("raptor_nb").rglob("*.*"), *Path("reports").rglob("*.csv"),
             Path("requirements.lock"), Path("tools/docs.py")]
    files = sorted(p for p in files if p.is_file() and p.suffix != ".pyc")
    parts = [p.as_posix().encode() + p.read_bytes() for p in files]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def public_names(folder):
    "The public functions and classes of the library in `folder`: full name -> definition"
    found = {}
    for path in sorted(folder.rglob("*.py")):
        module = ".".join(path.relative_to(folder.parent).with_suffix("").parts)
        body = ast.parse(path.read_text(encoding="utf-8")).body
        given = {ast.unparse(n.targets[0]): n.value for n in body if isinstance(n, ast.Assign)}
        public = ast.literal_eval(given["__all__"]) if "__all__" in given else []
        found |= {f"{module}.{n.name}": n for n in body if getattr(n, "name", None) in public}
    return found


def linked(text, names, module):
    "Markdown in which names of the library in backticks lead to their documentation"
    def link(match):
        here = f"{module}.{match[1]}"
        full = here if here in names else next((n for n in names if n.endswith(f".{match[1]}")), "")
        return f"{{py:obj}}`{match[1]} <{full}>`" if full else match[0]
    parts = re.split(r"(^```.*?^```|^#.*?$|\[[^\]]*\]\([^)]*\))", text, flags=re.M | re.S)
    parts[::2] = [re.sub(r"(?<![`\w}])`(\w+)(?:\(\))?`(?!`)", link, part) for part in parts[::2]]
    return "".join(parts)


class Elided:   # a default that is too long for a signature
    def __repr__(self): return "..."


def documented(node, module):
    "A definition for Sphinx: signature, docstring, nbdev's table of parameters"
    name, value = showdoc_nm(node), importlib.import_module(module)
    for part in name.split("."): value = getattr(value, part)
    try: given = inspect.signature(value)
    except (TypeError, ValueError): given = inspect.Signature()
    plain = (type, str, int, float, tuple, type(None))
    default = lambda p: p.default if isinstance(p.default, plain) else Elided()
    bare = [p.replace(annotation=p.empty, default=default(p)) for p in given.parameters.values()]
    signature = re.sub(r"<[^>]*>", "...", str(inspect.Signature(bare)))
    kind = "class" if isinstance(node, ast.ClassDef) else "method" if "." in name else "function"
    return f"::::{{py:{kind}}} {name}{signature}\n:module: {module}\n\n" \
           f"{ast.get_docstring(node) or ''}\n\n{DocmentTbl(value)}\n\n::::"


def code(cell): return DIRECTIVE.sub("", cell.source).strip("\n")


def shown(cell):
    "The outputs that a page can show: widgets need a kernel, warnings are for those who run it"
    said = lambda o: o.name != "stderr" and o.text.replace(CLEARED, "").strip()
    return [o for o in cell.outputs
            if (said(o) if o.output_type == "stream" else WIDGET not in o.get("data", {}))]


def converted(cell, names, module):
    "The cells of a page for one cell of a notebook"
    if cell.cell_type == "markdown": return [new_markdown_cell(linked(cell.source, names, module))]
    given = DIRECTIVE.findall(cell.source)
    if cell.cell_type != "code" or not code(cell): return []
    if "hide" in given: return [new_code_cell(code(cell), metadata={"tags": ["remove-cell"]})]
    if "export" not in given:
        silent = re.search(r"^#\|\s*echo:\s*false", cell.source, flags=re.M)
        return [new_code_cell(code(cell), metadata={"tags": ["remove-input"] if silent else []})]
    body = ast.parse(code(cell)).body
    nodes = [n for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name[0] != "_"]
    imports = all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body)
    tag = "remove-cell" if imports else "hide-input"
    return [*(new_markdown_cell(linked(documented(n, module), names, module)) for n in nodes),
            new_code_cell(code(cell), metadata={"tags": [tag]})]


def recorded(path):
    "The executed report with every code cell of this notebook, and its outputs by code; or None"
    cells = lambda p: [c for c in nbformat.read(p, as_version=4).cells if c.cell_type == "code"]
    wanted = {c.source for c in cells(path)}
    for report in sorted(path.parents[1].glob(f"reports/*/{path.name}")):
        executed = cells(report)
        if wanted <= {c.source for c in executed}:
            return report, {code(c): shown(c) for c in executed}


def notebook_page(path, names):
    "A notebook of nbs/ for Sphinx: exported cells folded, after the documentation of their names"
    nb = nbformat.read(path, as_version=4)
    text = "\n".join(c.source for c in nb.cells)
    exported = re.search(r"^#\|\s*default_exp (\S+)", text, flags=re.M)
    module = f"raptor_nb.{exported[1]}" if exported else ""
    nb.cells = [new for cell in nb.cells for new in converted(cell, names, module)]
    if found := recorded(path):
        report, outputs = found
        for cell in nb.cells:
            if cell.cell_type == "code": cell.outputs = outputs[cell.source]
        run = report.parent.relative_to(path.parents[1])
        link = f"[{run}](../{run}/README.md)"
        nb.cells[0].source += f"\n\n*What the cells show is from the run in {link}.*"
        nb.metadata["mystnb"] = {"execution_mode": "off"}
    return nb


def report_page(path):
    "An executed report: what it shows, with its code folded; its links are meant from nbs/"
    nb = nbformat.read(path, as_version=4)
    nb.cells = [c for c in nb.cells if c.cell_type == "markdown" or c.get("outputs")]
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.metadata["tags"] = ["hide-input"]
            cell.source, cell.outputs = code(cell), shown(cell)
        else: cell.source = re.sub(r"\]\((?!\w+:|#)", "](../../nbs/", cell.source)
    nb.metadata["mystnb"] = {"execution_mode": "off"}
    return nb


def report_contents(folder):
    "What follows the text of a report: its executed notebooks, data and figures"
    text = (folder / "README.md").read_text(encoding="utf-8")
    names = lambda *ends: sorted(p.relative_to(folder).as_posix()
                                 for p in folder.rglob("*") if p.suffix in ends)
    stages = [name.removesuffix(".ipynb") for name in names(".ipynb")]
    figures = [name for name in names(".png") if name not in text]
    toctree = ["```{toctree}", ":maxdepth: 1", "", *stages, "```", ""] if stages else []
    return "\n".join(["", "", *toctree, *(f"- [{name}]({name})" for name in names(".json", ".csv")),
                      *(f"\n![{Path(p).stem.replace('_', ' ')}]({p})" for p in figures)])


def api(names):
    "Every public name by module: the first line of its documentation, its line in the source"
    lines, last = [], None
    for full, node in names.items():
        module = full.rpartition(".")[0]
        if module != last:
            lines += ["", f"## {module}", ""]
            lines += ["| name | what it does | line |", "| --- | --- | --- |"]
        about = re.sub(r"([|<*_])", r"\\\1", (ast.get_docstring(node) or "").split("\n")[0])
        source = f"../_modules/{module.replace('.', '/')}.html#{node.name}"
        lines.append(f"| {{py:obj}}`{node.name} <{full}>` | {about} | "
                     f'<a href="{source}">{node.lineno}</a> |')
        last = module
    return "\n".join(lines)


def notebooks_of_modules():
    "{module: link from docs/ to its notebook}"
    found = {}
    for path in sorted(Path("nbs").rglob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        exported = re.search(r'"#\|\s*default_exp ([\w.]+)', text)
        if exported: found[exported[1]] = f"../{path.as_posix()}"
    return found


def execute_changed(app, env, docnames):
    "Before Sphinx reads pages: notebooks without outputs in the cache are executed, two at a time"
    cache, todo, failed = get_cache(app.config.nb_execution_cache_path), {}, []
    names = [n for n in docnames if n.startswith("nbs/")]
    for name in sorted(names, key=lambda n: (n[4].isdigit(), n), reverse=True):   # long ones first
        nb = notebook_page(Path(env.doc2path(name)), app.public_names)
        try: "mystnb" in nb.metadata or cache.match_cache_notebook(nb)
        except KeyError: todo[name] = nb
    def execute(name):
        folder, quiet = Path(env.doc2path(name)).parent, ["--log-level=ERROR"]
        run = lambda: single_nb_execution(todo[name], folder, None, False, extra_arguments=quiet)
        try: return run()
        except RuntimeError: return run()   # the kernel died at its start: another one took its port
    with ThreadPoolExecutor(2) as pool:
        run = {pool.submit(execute, name): name for name in todo}
        for future in as_completed(run):
            name, error = run[future], future.exception() or future.result().err
            if error:
                what = f"{error.ename}: {error.evalue}" if hasattr(error, "ename") else repr(error)
                failed.append(f"{name}.ipynb does not run: {what}")
                continue
            for cell in todo[name].cells:
                if cell.cell_type == "code": cell.outputs = shown(cell)
            bundle = CacheBundleIn(todo[name], name)
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
            print(f"{name}.ipynb: executed in {future.result().time:.0f} s", flush=True)
    if failed: raise SphinxError("; ".join(failed))


def source_read(app, docname, content):
    "What Sphinx parses, for what it has read"
    path = Path(app.env.doc2path(docname))
    if docname.startswith("nbs/"):
        nb = notebook_page(path, app.public_names)
        if docname == app.config.root_doc:
            for cell in nb.cells:   # the page itself in place of its picture
                if PICTURE.search(cell.source): cell.source = PICTURE.sub(FLYING, cell.source)
            contents = Path(app.confdir) / "contents.md"
            nb.cells.append(new_markdown_cell(contents.read_text(encoding="utf-8")))
            app.env.note_dependency(contents)
        for report in path.parents[1].glob(f"reports/*/{path.name}"):
            app.env.note_dependency(report)
        content[0] = nbformat.writes(nb)
    elif path.suffix == ".ipynb": content[0] = nbformat.writes(report_page(path))
    elif docname.startswith("reports/"): content[0] += report_contents(path.parent)
    elif docname == "docs/api": content[0] += api(app.public_names)
    elif docname == "docs/architecture":
        content[0] += architecture.page(notebooks_of_modules())


def reports(app, env, *_):
    "The pages that are read each time, since they show what other files hold"
    drawn = "reports/[^/]+/README|docs/architecture"
    return [name for name in env.found_docs if re.fullmatch(drawn, name)]


def forget(app, env, docname): (Path(app.outdir) / f"{docname}.html").unlink(missing_ok=True)


def setup(app):
    app.public_names = public_names(Path(app.srcdir) / "raptor_nb")
    app.connect("env-before-read-docs", execute_changed)
    app.connect("source-read", source_read)
    app.connect("env-get-outdated", reports)
    app.connect("env-purge-doc", forget)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def broken_links(site):
    "The links that lead nowhere within the site; Sphinx does not see those in raw HTML"
    links, ids = [], set()   # (page, where it leads), (page, place in it)
    for page in sorted(p for p in site.rglob("*.html") if "_static" not in p.parts):
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"(<script[^>]*>).*?</script>", r"\1", text, flags=re.S)
        for tag in re.findall(r'<[a-z][^<>]*\s(?:id|name|href|src)="[^<>]*>', text):
            for name, value in re.findall(r'\s(id|name|href|src)="([^"]+)"', tag):
                if name in ("id", "name"): ids.add((page, value))
                else: links.append((page, html.unescape(value)))
    def leads(page, link):
        to = urlsplit(link)
        target = Path(os.path.normpath(page.parent / unquote(to.path))) if to.path else page
        place = target.suffix == ".html" and unquote(to.fragment)
        return to.scheme or to.netloc or target.exists() and (not place or (target, place) in ids)
    return [f"{page.relative_to(site)}: {link}" for page, link in links if not leads(page, link)]


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    os.chdir(ROOT)
    os.environ |= {"IN_TEST": "1", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3",
                   "PYTHONPATH": str(ROOT)}
    sys.path[:0] = [str(ROOT)]
    site, doctrees = Path("_docs"), Path("build/doctrees")
    executed = Path("build/executed") / state()
    for old in executed.parent.glob("*"):
        if old != executed: shutil.rmtree(old)
    executed.mkdir(parents=True, exist_ok=True)
    if not doctrees.exists(): shutil.rmtree(site, ignore_errors=True)
    flying_page(Path("build/extra/fly.html"))
    if build_main(["-q", "-W", "--keep-going", "-j", "2", "-c", "docs", "-d", str(doctrees),
                   "-D", f"nb_execution_cache_path={executed}", ".", str(site)]):
        shutil.rmtree(doctrees, ignore_errors=True)   # else the next try would not say it again
        raise SystemExit("the site was not built: see above")
    broken = broken_links(site)
    if broken: raise SystemExit("\n".join(["links that lead nowhere:", *broken]))
    pages = len(list(site.rglob("*.html")))
    print(f"the site is in {site}/index.html; {pages} pages, no broken link")


if __name__ == "__main__": main()
