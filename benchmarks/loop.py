"""The loop of a flight stack beside rl_tools' executor, and on a Cortex-M4 and M7

    python benchmarks/loop.py [OUT.json] [--calls 10000] [--policy FILE]

The largest difference of an action over a stream of calls at 100 to 1000 Hz, with native steps by
the count and by the clock; instructions a call, flash and RAM by the ARM compiler and QEMU. Writes
rows as they stand in a report's verdict.json. What is not installed is left out, with a sentence.
"""
import argparse
import tempfile
from pathlib import Path

from raptor_nb.core.records import save_json
from raptor_nb.evaluation.acceptance import check, check_line
from raptor_nb.policy import RaptorPolicy, load_policy
from raptor_nb.targets.executor import compare_loops
from raptor_nb.targets.harness import CALLS, CORES, loop_on_core
from raptor_nb.targets.registry import export_file

LIMIT = 1e-5  # of an action
WHAT = {"policy": "a step of the policy alone", "loop": "a step of the loop",
        "call": "a whole call, from pose and target to motors",
        "interface": "a call of rl_tools' C interface, as we have it"}


def executor_rows(policy, calls):
    "Ours beside theirs, on the same stream. Raises ModuleNotFoundError"
    rows = []
    for r in compare_loops(policy, calls):
        by = f"every {r['calls']} calls" if r["calls"] > 1 else "every call" if r["calls"] else \
            "by the clock"
        where = f"{r['rate']} Hz, native {by}"
        rows.append(check(
            f"loop beside rl_tools' executor, largest difference of an action, {where}",
            r["difference"], "", LIMIT, higher_is_better=False,
            note=f"{calls} calls with jitter; the state moved at {r['native_hertz']:.1f} Hz"))
        rows.append(check(
            f"loop beside rl_tools' executor, calls whose kind or status differs, {where}",
            r["steps_differ"] + r["status_differs"], "calls", 0, higher_is_better=False))
    return rows


def core_rows(header, core):
    "What a call takes. Raises ModuleNotFoundError"
    table, rows = loop_on_core(header, core), []
    for name in CALLS:
        r = table.loc[name]
        more = r.instructions - table.instructions["policy"]
        note = "" if name == "policy" else f"{more:.0f} more than the policy alone"
        rows.append(check(f"{core} instructions, {WHAT[name]}", round(float(r.instructions)),
                          "instructions", note=note))
    for name in ("call", "interface"):
        r = table.loc[name]
        rows.append(check(f"{core} flash beside the policy's, {WHAT[name]}", int(r.added_flash),
                          "bytes"))
        rows.append(check(f"{core} RAM, {WHAT[name]}", int(r.ram), "bytes",
                          note=f"static; and at most {int(r.stack)} of stack"))
    return rows


def measure(policy, calls):
    "-> rows; what is missing is said"
    with tempfile.TemporaryDirectory() as folder:
        header = Path(folder) / "student.h"
        export_file(policy, "c", header)
        parts = [lambda: executor_rows(policy, calls),
                 *(lambda core=core: core_rows(header, core) for core in CORES)]
        rows = []
        for part in parts:
            try: rows += part()
            except ModuleNotFoundError as e: print(e)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--policy", type=Path)
    args = parser.parse_args()
    policy = load_policy(args.policy) if args.policy else RaptorPolicy.pretrained()
    rows = measure(policy, args.calls)
    for row in rows:
        print(check_line(row) if row["met"] is not None else
              f"{row['name']}: {row['value']} {row['unit']} {row.get('note', '')}")
    if args.out: save_json(args.out, rows)


if __name__ == "__main__": main()
