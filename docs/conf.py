"Sphinx settings; tools/docs.py, which `make docs` calls, is an extension and starts Sphinx"
import sys
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
settings = ConfigParser()
settings.read(ROOT / "settings.ini")
settings = settings["DEFAULT"]

project, author, release = settings["title"], settings["author"], settings["version"]
copyright = settings["copyright"]
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx.ext.viewcode", "docs"]
root_doc = "nbs/index"
include_patterns = ["nbs/**", "docs/**", "reports/**", "raptor_nb/weights/README.md",
                    "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = [".*", "**/.*", "_docs", "_proc", "build", "runs", "jupyter_execute",
                    "docs/README.md", "docs/contents.md"]

nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = -1
nb_merge_streams = True
nb_code_prompt_show = "source"
nb_code_prompt_hide = "source"
nb_ipywidgets_js = {}   # no page needs a network
nb_mime_priority_overrides = [
    ("html", "text/html", 5), ("html", "image/svg+xml", 6), ("html", "image/png", 7),
]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
python_maximum_signature_line_length = 80
add_module_names = False
highlight_language = "none"   # of blocks that name none
nitpicky = True   # what is linked must be there, but for the types in signatures
nitpick_ignore_regex = [("py:class", ".*")]

html_theme = "sphinx_book_theme"
html_title = "raptor_nb"
html_context = {"default_mode": "auto"}
mathjax, = find_spec("sphinx-mathjax-offline").submodule_search_locations
mathjax_path = "tex-svg.js"   # one file that needs neither network nor fonts
html_static_path = ["_static", f"{mathjax}/static/mathjax/{mathjax_path}"]
html_extra_path = ["extra", "../build/extra"]
html_css_files = ["raptor.css"]
html_show_search_summary = False   # it is fetched, which a browser does not do for files
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "use_download_button": False, "use_fullscreen_button": False,
    "show_navbar_depth": 1, "show_toc_level": 2,
    "home_page_in_toc": True, "navbar_persistent": [], "navbar_start": [],
}
