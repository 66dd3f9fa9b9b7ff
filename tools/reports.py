"""A finished run's report into reports/, and what is shipped with it into raptor_nb/weights

    python tools/reports.py             what can be published, and from where
    python tools/reports.py foundation  publishes it
"""
import argparse, os, shutil, sys
from pathlib import Path

from raptor_nb.core.config import suggest
from raptor_nb.core.records import atomic, load_json
from raptor_nb.policy import RaptorPolicy
from raptor_nb.report import ship
from raptor_nb.targets.registry import TARGETS, targets_for

ROOT, WEIGHTS = Path(__file__).resolve().parents[1], Path("raptor_nb/weights")
REPORTS = {
    "quick": "runs/quick/report",
    "foundation": "runs/full/report",
    "published_recipe": "runs/full/report_published_recipe",
    "understand": "runs/full/report_understand",
    "export": "runs/export/report",
    "sac": "runs/sac/report",
    "direct": "runs/direct/report_direct",
    "identify": "runs/identify/report_identify",
    "transfer": "runs/transfer/report_transfer",
    "real": "runs/real/report_real",
    "gpu": "runs/gpu/report_gpu",
    "paper": "runs/paper/report_paper",
}
OTHERS = {  # what other programs and further policies leave in a report
    "direct": ["long.json", "long.yaml"],
    "paper": ["lead.json", "figures/lead.png", "more_inputs.json"],
    "real": ["specialists.json", "foundation64.json", "real32_last.yaml", "students.json", "figures/frontier.png", "seeds/*"],
    "transfer": ["real32.csv", "real64.csv", "betaflight_real_time.json"],
}
EXPORTED = [TARGETS[name].file for name in targets_for(RaptorPolicy.pretrained(), "all")]


class NotFinished(Exception):
    "Why a report cannot be published, in one sentence"


def check_finished(report):
    "Its front page is written last, so nothing in it is newer. Raises NotFinished"
    if not report.exists(): raise NotFinished(f"there is no '{report}'; make it first")
    if not (report / "verdict.json").is_file():
        raise NotFinished(f"'{report}' is not finished: resume it with the same command")
    page = report / "index.html"
    files = [p for p in report.rglob("*") if p.is_file()]
    made = page.stat().st_mtime_ns if page.exists() else float("inf")
    newer = [p for p in files if p.stat().st_mtime_ns > made]
    running = [p for p in [*files, *report.parent.glob("stages/*")] if ".running." in p.name]
    if newer or running:
        name = (running or newer)[0].name
        raise NotFinished(f"the run of '{report}' is not finished (see '{name}'): "
                          "resume it with the same command")


def replace(report, folder):
    "The folder becomes a copy of the report; its introduction (README.md) and `OTHERS` stay"
    aside, old = (folder.with_name(f".{folder.name}.{what}") for what in ("new", "old"))
    for left in (aside, old): shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(report, aside, ignore=shutil.ignore_patterns(".*"))
    names = "README.md", *OTHERS.get(folder.name, ())
    for kept in [file for name in names for file in folder.glob(name)]:
        own = aside / kept.relative_to(folder)
        if own.exists(): continue
        own.parent.mkdir(exist_ok=True)
        shutil.copy2(kept, own)
    if folder.exists(): folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def ship_files(run):
    "The exported files into the weights. Raises NotFinished"
    missing = next((name for name in EXPORTED if not (run / name).is_file()), None)
    if missing: raise NotFinished(f"there is no '{run / missing}' to ship: make export-report")
    for name in EXPORTED:
        with atomic(WEIGHTS / name) as tmp: shutil.copyfile(run / name, tmp)


def publish(name):
    "One report, with the weights that belong to it. Raises NotFinished, OSError"
    if name not in REPORTS:
        raise NotFinished(f"there is no report '{name}'; {suggest(name, REPORTS)}")
    report = Path(REPORTS[name])
    check_finished(report)
    if name == "foundation": ship(report.parent, WEIGHTS, load_json(report / "verdict.json"))
    if name == "export": ship_files(report.parent)
    replace(report, Path("reports") / name)
    shipped = f", {WEIGHTS} has its files" if name in ("foundation", "export") else ""
    return f"reports/{name} is a copy of '{report}'{shipped}"


def listed():
    "What could be published, and why not"
    for name, report in REPORTS.items():
        try: check_finished(Path(report))
        except NotFinished as e: state = str(e)
        else: state = f"make reports NAME={name}"
        yield f"{name:17} {report:34} {state}"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help=", ".join(REPORTS))
    name = parser.parse_args(argv).name
    os.chdir(ROOT)
    try: print(publish(name) if name else "\n".join(listed()))
    except (NotFinished, OSError) as e: sys.exit(f"reports: {e}")


if __name__ == "__main__": main()
