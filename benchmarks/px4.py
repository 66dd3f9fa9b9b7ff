"""Would PX4 fly the student's file? What is in it, and the module's self-test by three readers

    python benchmarks/px4.py [OUT.json] [STUDENT.safetensors]

Prints rows as of verdict.json, and writes them to OUT.json. Where the package rltools or a C++
compiler is missing, the rows by rl_tools' own code are left out and a sentence says so.
"""
import hashlib
import sys
import tempfile
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import px4_reader as reader  # noqa: E402

from raptor_nb.core.records import save_json  # noqa: E402
from raptor_nb.evaluation.acceptance import check, check_line  # noqa: E402
from raptor_nb.policy import PX4_DIFFERENCE, RaptorPolicy, load_policy, read_tar  # noqa: E402
from raptor_nb.targets.px4 import px4_example, px4_start, write_px4  # noqa: E402

at_most = partial(check, higher_is_better=False, threshold=PX4_DIFFERENCE)


def file_rows(path):
    "What the student's archive holds, and whether it gives the weights back"
    start = px4_start(path)
    return [check("student.px4.tar, size", start.bytes, "bytes"),
            check("student.px4.tar, entries", start.entries, "entries"),
            at_most("student.px4.tar, mean difference of PX4's self-test, emulated",
                    start.difference, note="2 flights of 5 steps; " + start.checkpoint)]


def equal_tensors(policy, path):
    "How many tensors of the file are those of the policy, read back"
    ours, back = policy.state_dict(), load_policy(path).state_dict()
    return sum(ours[k].numpy().tobytes() == back[k].numpy().tobytes() for k in ours)


def published_rows(folder):
    "The published policy, written by us, beside the published archive"
    policy, path = RaptorPolicy.published(), folder / "published.px4.tar"
    entries = read_tar(policy.to_tar(path, *px4_example(policy), reader.PUBLISHED_NAME))
    equal = sum(hashlib.sha256(entries[f"actor/layers/{k}/parameters/data"]).hexdigest() == digest
                for k, digest in reader.PUBLISHED.items())
    actor = sorted(k for k in entries if k.startswith("actor/"))
    joined = b"".join(k.encode() + b"\0" + entries[k] for k in actor)
    same = hashlib.sha256(joined).hexdigest() == reader.PUBLISHED_ACTOR
    return [check("published policy written by us, tensors equal to the published archive's", equal,
                  "tensors", len(reader.PUBLISHED)),
            check("published policy written by us, entries of the actor equal byte for byte",
                  same * len(actor), "entries", 22),
            at_most("published policy written by us, mean difference of the self-test, emulated",
                    px4_start(path).difference)]


def rl_tools_rows(paths, folder):
    "The same files read and evaluated by rl_tools' own code; {name: path}"
    if said := reader.missing():
        print(f"left out: rl_tools' own reader ({said})")
        return []
    program, rows = reader.build(folder), []
    for name, path in paths.items():
        found = reader.read(program, path)
        for part, value in (("layers", found.layers), ("executor at 100 Hz", found.executor)):
            rows.append(at_most(f"{name}, mean difference of the self-test, rl_tools' {part}",
                                value))
        rows.append(check(f"{name}, mean difference of the whole example, rl_tools' layers",
                          found.whole, note=f"2 flights of {found.steps} steps"))
    return rows


def main(out=None, student=ROOT / "raptor_nb/weights/student.safetensors"):
    policy = load_policy(student)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        path = folder / "student.px4.tar"
        write_px4(policy, path, student)
        rows = file_rows(path)
        rows.append(check("student.px4.tar, tensors equal after reading", equal_tensors(policy, path),
                          "tensors", len(policy.state_dict())))
        rows += published_rows(folder)
        rows += rl_tools_rows({"student.px4.tar": path,
                               "published policy written by us": folder / "published.px4.tar"}, folder)
    for row in rows: print(check_line(row) if row["met"] is not None
                           else f"{row['name']}: {row['value']:.6g} {row['unit']}")
    if out: save_json(out, rows)
    return rows


if __name__ == "__main__": main(*sys.argv[1:])
