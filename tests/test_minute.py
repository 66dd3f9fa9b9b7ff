"make minute: the page on which a student of one's own flies"
import sys
from pathlib import Path

import numpy as np
import pytest

from raptor_nb.policy import RaptorPolicy

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import fly  # noqa: E402
import minute  # noqa: E402

needs_page = pytest.mark.skipif(not fly.PAGE.is_file(), reason="no page")


@needs_page
def test_the_page_flies_the_student_that_was_given(tmp_path):
    pytest.importorskip("l2f", reason="needs the extra raptor-nb[sim]")
    published, student = RaptorPolicy.published(), tmp_path / "student.safetensors"
    published.save(student)
    made = minute.write_page(student)
    assert made == tmp_path / "fly.html"
    before = fly.PAGE.read_text(encoding="utf-8")
    old, new = fly.data_of(before), fly.data_of(made.read_text(encoding="utf-8"))
    for name, values in published.state_dict().items():
        shown = new["policies"]["student"]["weights"][name]
        np.testing.assert_allclose(shown, values.numpy(), rtol=1e-7, atol=1e-12)
    mine, theirs = (new["policies"][n]["probe"]["r2"] for n in ("student", "published"))
    assert mine == pytest.approx(theirs, abs=.02), "the same policy, so the same probe"
    for part in (old, new): del part["policies"]["student"]
    assert old == new


@needs_page
@pytest.mark.parametrize("size, sentence", [
    (0, "there is no student 'student.safetensors'"),
    (8, "'student.safetensors' is no student with a hidden state of 16")])
def test_who_cannot_fly_on_the_page_is_refused(tmp_path, monkeypatch, size, sentence):
    monkeypatch.chdir(tmp_path)
    if size: RaptorPolicy(hidden_dim=size).save("student.safetensors")
    with pytest.raises(SystemExit, match=sentence): minute.write_page("student.safetensors")
    assert not Path("fly.html").exists()


def test_a_missing_page_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(fly, "PAGE", tmp_path / "no.html")
    with pytest.raises(SystemExit, match="web/fly.html is missing: `make page` makes it"):
        minute.write_page("student.safetensors")
