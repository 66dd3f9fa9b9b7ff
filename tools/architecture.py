"The rooms of the library and the arrows between them, from the imports of its modules"
import ast
import html
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "raptor_nb"

# From the lowest up: a room imports from its own layer and from lower ones.
# room: what belongs there
LAYERS = [
    {"core": "files that survive a kill, settings as a mechanism, progress, processes; "
             "nothing of drones"},
    {"policy": "the network, published checkpoints in and out, stacks of teachers",
     "drones": "what a drone is, distributions, the real drones, the table of splits"},
    {"sim": "how drones fly: physics in torch, l2f, native kernels; conditions, the one "
            "roll-out with its observers, pictures"},
    {"environment": "Gymnasium environments and their wrappers",
     "identify": "a flight's log, and what it tells of the drone",
     "learn": "learners: each with its networks, losses, update and training",
     "evaluation": "statistics, acceptance checks, figures, probing, lost flights, ablations",
     "settings": "everything that a run depends on, composed of the rooms' sections",
     "targets": "kinds of exported file, and the comparison with the policy"},
    {"stages": "parameters, one call, figures, findings; they pass files to each other"},
    {"studies": "questions about finished runs: what is known, what failed, what a file costs",
     "report": "the pages of a run and its table of checks"},
    {"pipeline": "which stage needs what, and what need not be done again"},
    {"cli": "the console commands"},
]
# rooms whose modules stand in no folder
TOGETHER = {
    "stages": {"direct", "pretrain", "distill", "export", "evaluate"},
    "studies": {"understand", "proof", "grid"},
    "drones": {"your_drone"},
}
STAGES = TOGETHER["stages"]


def module_files():
    "{dotted name without the package: path}"
    paths = sorted(p for p in LIBRARY.rglob("*.py") if p.name not in ("_modidx.py", "__init__.py"))
    return {".".join(p.relative_to(LIBRARY).with_suffix("").parts): p for p in paths}


def room_of(module):
    "'learn.sac' -> 'learn'; 'export' -> 'stages'"
    first = module.split(".")[0]
    return next((room for room, names in TOGETHER.items() if first in names), first)


def layer_of(module):
    "Position in LAYERS, or None"
    found = (i for i, rooms in enumerate(LAYERS) if room_of(module) in rooms)
    return next(found, None)


def imports(module, path, names):
    "Which of our modules a module imports, anywhere in it"
    package = ["raptor_nb", *module.split(".")[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found = []
        if isinstance(node, ast.Import): found = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *filter(None, [node.module])])
            found = [base, *(f"{base}.{a.name}" for a in node.names)]
        ours = (name.removeprefix("raptor_nb.") for name in found)
        yield from (name for name in ours if name in names and name != module)


def import_graph():
    "{module: modules that it imports}"
    files = module_files()
    return {module: set(imports(module, path, files)) for module, path in files.items()}


def arrows(graph):
    "{(room, room that it imports)}, without those that a longer way implies"
    pairs = {(room_of(a), room_of(b)) for a, others in graph.items() for b in others}
    pairs = {(a, b) for a, b in pairs if layer_of(a) != layer_of(b)}
    below = {a: {d for c, d in pairs if c == a} for a, _ in pairs}

    def reached(room, seen=frozenset()):
        "Every room that can be reached in two steps and more"
        for other in below.get(room, set()) - seen:
            yield from below.get(other, set())
            yield from reached(other, seen | {room})
    return {(a, b) for a, b in pairs if b not in set(reached(a))}


BOX, WIDE, ROW = (134, 40), 760, 74   # of a room; of the figure; from layer to layer
STYLE = """.box { fill: #fff; stroke: #1f77b4; stroke-width: 2 }
.name { font: 600 17px system-ui, 'DejaVu Sans', sans-serif; fill: #1c232b }
.arrow { stroke: #8793a0; stroke-width: 1.6; marker-end: url(#down) }"""
TIP = '<marker id="down" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" ' \
      'orient="auto"><path d="M0 0L10 5L0 10z" fill="#8793a0"/></marker>'


def places():
    "{room: centre of its box}, the highest layer on top"
    out = {}
    for i, rooms in enumerate(reversed(LAYERS)):
        for k, room in enumerate(rooms):
            out[room] = WIDE * (k + .5) / len(rooms), 20 + BOX[1] / 2 + ROW * i
    return out


def figure(graph):
    "SVG: a box for each room, an arrow for each import"
    at, (wide, high) = places(), BOX
    tall = ROW * (len(LAYERS) - 1) + high + 40
    lines = [f'<path class="arrow" d="M{at[a][0]:.0f} {at[a][1] + high / 2:.0f}'
             f'L{at[b][0]:.0f} {at[b][1] - high / 2:.0f}"/>'
             for a, b in sorted(arrows(graph))]
    boxes = [f'<rect class="box" x="{x - wide / 2:.0f}" y="{y - high / 2:.0f}" '
             f'width="{wide}" height="{high}" rx="7"/>'
             f'<text class="name" text-anchor="middle" x="{x:.0f}" y="{y + 6:.0f}">{room}</text>'
             for room, (x, y) in at.items()]
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {tall}" '
                      'role="img" style="max-width: 48rem">',
                      "<title>Rooms of the library and what they import</title>",
                      f"<style>{STYLE}</style><defs>{TIP}</defs>",
                      f'<rect width="{WIDE}" height="{tall}" rx="10" fill="#f7f9fb"/>',
                      *lines, *boxes, "</svg>"])


def table(graph, notebooks):
    "Markdown: room, its modules with links, what belongs there"
    rows = ["| room | modules | what belongs there |", "| --- | --- | --- |"]
    for rooms in reversed(LAYERS):
        for room, about in rooms.items():
            modules = [m for m in graph if room_of(m) == room]
            linked = [f"[{m.rpartition('.')[2]}]({notebooks[m]})" for m in modules]
            rows.append(f"| {room} | {', '.join(linked)} | {html.escape(about)} |")
    return "\n".join(rows)


def page(notebooks):
    "What follows the text of docs/architecture.md; notebooks: {module: link from docs/}"
    graph = import_graph()
    return "\n".join(["", "```{raw} html", figure(graph), "```", "", table(graph, notebooks), ""])
