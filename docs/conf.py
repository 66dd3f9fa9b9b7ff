"Sphinx settings. `make docs` calls tools/docs.py, which fills build/docs from nbs/ and this folder and then builds that."
from configparser import ConfigParser
from pathlib import Path

settings = ConfigParser()
settings.read(Path(__file__).resolve().parents[2] / "settings.ini")   # this file is used from build/docs
settings = settings["DEFAULT"]

project, author, release = settings["title"], settings["author"], settings["version"]
copyright = settings["copyright"]
extensions = ["myst_nb", "sphinx.ext.mathjax"]
mathjax_path = "mathjax/tex-svg.js"   # put there by tools/docs.py
nb_execution_mode = "off"   # tools/docs.py has executed them
nb_merge_streams = True
nb_code_prompt_show = "source"
nb_code_prompt_hide = "source"
nb_mime_priority_overrides = [("html", "text/html", 5), ("html", "image/svg+xml", 6), ("html", "image/png", 7)]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header", "myst.xref_missing", "misc.highlighting_failure"]
exclude_patterns = ["README.md"]

html_theme = "sphinx_book_theme"
html_title = "raptor_nb"
html_context = {"default_mode": "auto"}
html_static_path = ["_static"]
html_css_files = ["raptor.css"]
html_extra_path = ["extra"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "use_download_button": False, "use_fullscreen_button": False, "show_navbar_depth": 1, "show_toc_level": 2,
    "home_page_in_toc": True, "navbar_persistent": [], "navbar_start": [],
}

