"What code reads of the settings exists: a setting that was renamed is renamed everywhere"
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import house  # noqa: E402
from raptor_nb.settings import Settings  # noqa: E402

LEAVES = {name for name, _ in house.settings(ROOT)}
SECTIONS = {name.rpartition(".")[0] for name in LEAVES} | {name.split(".")[0] for name in LEAVES}
KNOWN = LEAVES | SECTIONS | {name for name in vars(Settings) if not name.startswith("_")}


def trees():
    "{where: tree} of the library, the notebooks, the benchmarks and the tools"
    found = {f"raptor_nb.{name}": tree for name, tree in house.modules(ROOT).items()}
    cells = [(p, text) for p, text in house.code_cells(ROOT) if not house.exported(text)]
    found |= {f"{p.name} {i}": house.tree_of(text) for i, (p, text) in enumerate(cells)}
    paths = [p for f in ("benchmarks", "tools") for p in (ROOT / f).glob("*.py")]
    return found | {p.name: ast.parse(p.read_text(encoding="utf-8")) for p in paths}


def pairs(node):
    "(target, value) of an assignment, of tuples one by one"
    for target in node.targets:
        both = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
        yield from zip(target.elts, node.value.elts) if both else [(target, node.value)]


def chain(node):
    "'apg.horizon' of `run.settings.apg.horizon`; '' of what is no chain from settings"
    words = []
    while isinstance(node, ast.Attribute):
        words.append(node.attr)
        node = node.value
    words.append(getattr(node, "id", ""))
    if "settings" not in words[1:]: return ""
    return ".".join(reversed(words[:words.index("settings", 1)]))


def loop_names(function):
    "Names that loops and comprehensions bind"
    loops = (n.target for n in ast.walk(function) if isinstance(n, (ast.For, ast.comprehension)))
    return {n.id for target in loops for n in ast.walk(target) if isinstance(n, ast.Name)}


def read(function):
    "Dotted names of settings in a function, also by a name such as `p = settings.apg`"
    names = {}
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign): continue
        for target, value in pairs(node):
            if isinstance(target, ast.Name) and chain(value): names[target.id] = chain(value)
    for name in loop_names(function): names.pop(name, None)
    for node in ast.walk(function):
        if not isinstance(node, ast.Attribute): continue
        base = getattr(node.value, "id", None)
        if base in names: yield f"{names[base]}.{node.attr}"
        elif chain(node): yield chain(node)


def exists(name):
    "A setting, a section, what is called on one; or a setting of the section `settings` itself"
    if name in KNOWN or name in {leaf.rpartition(".")[2] for leaf in LEAVES}: return True
    above, _, last = name.rpartition(".")
    return above in LEAVES or above in KNOWN - SECTIONS or last in dir(dict)


def test_settings_that_are_read_exist():
    unknown = {f"{where}: {name}" for where, tree in trees().items() for part in tree.body
               for name in read(part) if not exists(name)}
    assert not unknown


def test_a_setting_that_does_not_exist_is_found():
    part = ast.parse("def f(settings):\n    e = settings.evaluation\n    return e.nothing + "
                     "settings.apg.horizon + settings.apg.never")
    assert [name for name in read(part) if not exists(name)] == ["apg.never", "evaluation.nothing"]
