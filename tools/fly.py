"""The page on which drones fly: web/fly.html + the bundled program + policies and drones of this package -> one file that needs no server

`make fly` writes build/fly.html, `make docs` puts it into the site. The program is made from web/src by `make bundle` (npm) and kept in web/fly.js.
"""
import argparse, hashlib, json, os, shutil, subprocess
from pathlib import Path

import numpy as np

from raptor_nb.core.records import atomic
from raptor_nb.drones import DISTRIBUTIONS, real_drones, sample_fleet, vary
from raptor_nb.policy import RaptorPolicy
from raptor_nb.understand import r_squared, ridge, watch

WEB = Path(__file__).resolve().parents[1] / "web"
PROGRAM, LABELS = WEB / "fly.js", {"student": "ours", "published": "published"}
SEED, SAMPLED, PROBED = 2026, 64, 384   # drones on the page and, after them, those that the probe learns from: none of them was trained on


def rounded(values, digits=9):
    "Numbers as short as float32 needs them"
    if isinstance(values, dict): return {k: rounded(v, digits) for k, v in values.items()}
    if isinstance(values, (list, tuple)): return [rounded(v, digits) for v in values]
    return float(f"{values:.{digits}g}") if isinstance(values, float) else values


def fit_probe(policy, drones):
    "What `raptor_nb.understand` does, as numbers for the page: thrust-to-weight from the memory between 0.5 and 5 s, calm and in rough weather"
    inputs, truth, learn = [], [], []
    for i, (force, noise) in enumerate(((0., 0.), (.1, .01))):
        film = watch(policy, [vary(d, force=force, observation_noise=noise, velocity_limit=False, max_position=.3, position_threshold=3.) for d in drones], np.arange(50, 501, 50), seed=7 + i)
        keep, looks = film.alive, len(film.looks)
        inputs.append(film.memory[keep].reshape(-1, film.memory.shape[2]))
        truth.append(np.repeat(np.array([d.thrust_to_weight for d in drones])[keep], looks)[:, None])
        learn.append(np.repeat((np.arange(len(drones)) % 3 > 0)[keep], looks))
    inputs, truth, learn = map(np.concatenate, (inputs, truth, learn))
    read = ridge(inputs[learn], truth[learn])
    return dict(centre=read.centre.tolist(), spread=read.spread.tolist(), weights=read.weights[:, 0].tolist(), r2=float(r_squared(truth[~learn], read(inputs[~learn]))[0]))


def page_data():
    "Both policies with their probes, the real drones, sampled ones, and what was trained on"
    fleet = sample_fleet(SAMPLED + PROBED, seed=SEED)
    policies = {"student": RaptorPolicy.pretrained(), "published": RaptorPolicy.published()}
    spoken = lambda p: {k: v.numpy().tolist() for k, v in p.state_dict().items()}
    ranges = {k: v for k, v in vars(DISTRIBUTIONS["published"]).items() if isinstance(v, tuple)}
    return rounded(dict(policies={name: dict(label=LABELS[name], weights=spoken(p), probe=fit_probe(p, fleet[SAMPLED:])) for name, p in policies.items()},
                        drones={name: dict(dynamics=d.to_dict()["dynamics"]) for name, d in real_drones().items()}, template="crazyflie",
                        sampled=[dict(name=d.name, dynamics=d.to_dict()["dynamics"]) for d in fleet[:SAMPLED]], trained_on=ranges))


def page(data, program):
    "One HTML file"
    text = (WEB / "fly.html").read_text(encoding="utf-8")
    return text.replace("/*data*/", json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")).replace("/*program*/", program)


def write_page(path):
    "Raises SystemExit where the program is not there"
    if not PROGRAM.is_file(): raise SystemExit(f"{PROGRAM.relative_to(WEB.parent)} is missing: `make bundle` makes it where npm is at hand")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary: Path(temporary).write_text(page(page_data(), PROGRAM.read_text(encoding="utf-8")), encoding="utf-8")
    return path


def sources_hash():
    "Of everything that the program is made from"
    files = [WEB / "package.json", *sorted((WEB / "src").glob("*.js"))]
    return hashlib.sha256(b"\0".join(p.name.encode() + b"\0" + p.read_bytes() for p in files)).hexdigest()


def bundle(out=PROGRAM):
    "web/src -> web/fly.js, with the licence of three.js and the hash of the sources in front"
    if not shutil.which("npm"): raise SystemExit("the program of the page is bundled by npm, which is not here: install Node.js 20 or later")
    if not (WEB / "node_modules/esbuild").is_dir():
        done = subprocess.run(["npm", "install", "--no-audit", "--no-fund"], cwd=WEB, capture_output=True, text=True)
        if done.returncode: raise SystemExit(f"npm could not install three and esbuild: {(done.stderr.strip().splitlines() or ['it did not say why'])[-1]}")
    licence = (WEB / "node_modules/three/LICENSE").read_text().strip()
    raw = Path(out).with_suffix(".tmp.js")
    done = subprocess.run(["npm", "run", "-s", "build", "--", f"--outfile={raw}"], cwd=WEB, capture_output=True, text=True)
    if done.returncode: raise SystemExit(f"esbuild did not bundle the page:\n{done.stderr}")
    Path(out).write_text(f"/* made by `make bundle`; sources sha256 {sources_hash()}\n\nContains three.js:\n{licence}\n*/\n{raw.read_text(encoding='utf-8')}", encoding="utf-8")
    raw.unlink()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", action="store_true", help="make web/fly.js from web/src")
    parser.add_argument("--out", default="build/fly.html", help="where the page goes")
    given = parser.parse_args()
    os.chdir(WEB.parent)
    if given.bundle: bundle()
    else: print(f"the page is {write_page(given.out)}: open it in a browser")


if __name__ == "__main__": main()
