"""Everything that a GPU changes, as one report: runs/gpu/report_gpu

    python tools/gpu.py                 on the first GPU; without one, a miniature on the CPU
    python tools/gpu.py --device cuda:1 on another one
"""
import argparse
from pathlib import Path

from raptor_nb.cli import command
from raptor_nb.core.execute import execute
from raptor_nb.pipeline import run_study


@command
def gpu_command(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    p.add_argument("--output-dir", default="runs/gpu", help="for tables, and the report below it")
    args = p.parse_args(argv)
    output = Path(args.output_dir)
    run_study("17_gpu", output / "report", "full", output, args.device, -1, "", execute)
    print(f"the report is {output / 'report_gpu' / 'index.html'}")


if __name__ == "__main__": raise SystemExit(gpu_command())
