"Sphinx settings. `make docs` calls tools/docs.py, which fills build/docs from nbs/ and this folder and then builds that."
import base64, io
from configparser import ConfigParser
from html import escape
from pathlib import Path

from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import math_to_image

settings = ConfigParser()
settings.read(Path(__file__).resolve().parents[2] / "settings.ini")   # this file is used from build/docs
settings = settings["DEFAULT"]

project, author, release = settings["title"], settings["author"], settings["version"]
copyright = settings["copyright"]
extensions = ["myst_nb"]
html_math_renderer = "mathtext"
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
html_static_path = ["_static"]
html_css_files = ["raptor.css"]
html_extra_path = ["extra"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "use_download_button": False, "use_fullscreen_button": False, "show_navbar_depth": 1, "show_toc_level": 2,
    "home_page_in_toc": True, "navbar_persistent": [], "navbar_start": [],
}


def formula(text, size):
    "A formula as a picture that needs no script from elsewhere; what matplotlib cannot set is shown as it is written"
    picture = io.BytesIO()
    try: depth = math_to_image(f"${text.strip()}$", picture, prop=FontProperties(size=size, math_fontfamily="cm"), dpi=72, format="svg")
    except ValueError: return f"<code>{escape(text)}</code>"
    data = base64.b64encode(picture.getvalue()).decode()
    return f'<img class="formula" alt="{escape(text)}" style="vertical-align: -{depth:.1f}pt" src="data:image/svg+xml;base64,{data}">'


def setup(app):
    from docutils.nodes import SkipNode

    def inline(writer, node):
        writer.body.append(formula(node.astext(), 12.5))
        raise SkipNode

    def block(writer, node):
        writer.body += [f'<p class="formula">{formula(line, 15)}</p>' for line in node.astext().replace(r"\\", "\n").splitlines() if line.strip()]
        raise SkipNode

    app.add_html_math_renderer("mathtext", inline_renderers=(inline, None), block_renderers=(block, None))
