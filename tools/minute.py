"""The page on which drones fly (web/fly.html) with a student of one's own

    python tools/minute.py runs/minute/student.safetensors    runs/minute/fly.html

Its weights and what its hidden state gives away are new; everything else is the page's.
"""
import argparse
import json
import os
import re
from pathlib import Path

import fly
from raptor_nb.core.records import atomic
from raptor_nb.drones import sample_fleet
from raptor_nb.policy import RaptorPolicy, load_policy

DATA = re.compile(r'(<script id="data" type="application/json">).*?(</script>)')


def flown_by(policy, text):
    "The text of a page with another student in place of the package's"
    data, ids = fly.data_of(text), range(fly.SAMPLED, fly.SAMPLED + fly.PROBED)
    weights = {k: v.numpy().tolist() for k, v in policy.state_dict().items()}
    probe = fly.fit_probe(policy, sample_fleet(ids, seed=fly.SEED))
    data["policies"]["student"] |= fly.rounded(dict(weights=weights, probe=probe))
    data = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return DATA.sub(lambda m: m[1] + data + m[2], text)


def write_page(student, page=None):
    "-> path of the page. Raises SystemExit with a sentence"
    if not fly.PAGE.is_file(): raise SystemExit("web/fly.html is missing: `make page` makes it")
    try: policy = load_policy(student)
    except (OSError, ValueError) as e: raise SystemExit(str(e)) from None
    wanted = RaptorPolicy().hidden_dim
    if getattr(policy, "hidden_dim", None) != wanted:
        raise SystemExit(f"'{student}' is no student with a hidden state of {wanted}, "
                         "and the page flies no other")
    text = flown_by(policy, fly.PAGE.read_text(encoding="utf-8"))
    page = Path(page or Path(student).with_name("fly.html"))
    with atomic(page) as temporary: Path(temporary).write_text(text, encoding="utf-8")
    return page


def main():
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("student", help="a .safetensors file")
    parser.add_argument("--page", help="where it goes; without it fly.html beside the student")
    given = parser.parse_args()
    os.chdir(fly.WEB.parent)
    write_page(given.student, given.page)


if __name__ == "__main__": main()
