"What pyproject.toml cannot say: the wheel brings along the notebooks, and the guides whose programs 10_proof measures"
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

NOTEBOOKS = [*Path("nbs").glob("*.ipynb"), *Path("nbs").glob("[!.]*/*.ipynb")]
GUIDES = [Path("docs/javascript.md"), Path("docs/microcontroller.md")]


class WithNotebooks(build_py):
    def added(self):
        "Where each goes in the wheel; an editable install reads them in the clone"
        if self.editable_mode: return {}
        package = Path(self.build_lib, "raptor_nb")
        return {package / "notebooks" / p.relative_to("nbs"): p for p in NOTEBOOKS} | {package / "guides" / p.name: p for p in GUIDES}

    def run(self):
        super().run()
        for target, source in self.added().items():
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))

    def get_outputs(self, include_bytecode=1): return [*super().get_outputs(include_bytecode), *map(str, self.added())]
    def get_source_files(self): return [*super().get_source_files(), *map(str, NOTEBOOKS + GUIDES)]   # of a source distribution


setup(cmdclass={"build_py": WithNotebooks})
