"Who searches for a word of the field finds the one page where it is done"
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# word: the page that has it in a heading, the only one
PAGES = {
    "ablation": "evaluation/ablation",
    "analytic policy gradient": "learn/apg",
    "dagger": "learn/dagger",
    "domain randomization": "01_drones",
    "fine-tuning": "learn/direct",
    "gptq": "targets/tflite",
    "hyperparameter": "settings",
    "in-context adaptation": "evaluation/probing",
    "out-of-distribution": "01_drones",
    "published distillation": "learn/published",
    "replay buffer": "learn/sac",
    "roll-out": "sim/rollout",
    "system identification": "guides/your_drone",
}
GLOSSARY = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^(\w.*)\n  (.*)$", GLOSSARY, re.M)


def headings(path):
    "Titles and headings of a notebook, in small letters"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    return [l.lower() for t in texts for l in t.splitlines() if re.match("#+ ", l)]


@pytest.mark.parametrize("word", PAGES)
def test_a_heading_of_one_page_has_the_word(word):
    pages = {p.relative_to(ROOT / "nbs").with_suffix("").as_posix(): headings(p)
             for p in (ROOT / "nbs").rglob("*.ipynb")}
    assert [name for name, found in pages.items() if any(word in h for h in found)] == [PAGES[word]]


@pytest.mark.parametrize("term, text", ENTRIES, ids=[term for term, _ in ENTRIES])
def test_the_glossary_leads_to_pages(term, text):
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links and all((ROOT / "docs" / link).is_file() for link in links), term


def test_the_glossary_is_in_order_and_has_the_words():
    terms = [term.lower() for term, _ in ENTRIES]
    assert terms == sorted(terms)
    for word in ("ablation", "dagger", "replay buffer", "fine-tuning", "system identification"):
        assert word in terms
