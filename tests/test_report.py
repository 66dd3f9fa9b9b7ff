"Reports: what comes first, what is never folded away, what ships with the student"
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from raptor_nb import report as R
from raptor_nb.settings import load_config
from raptor_nb.core.records import write_manifest
from raptor_nb.policy import RaptorPolicy
from raptor_nb.targets.registry import FILES


def row(name, met, note=""):
    return dict(name=name, value=1.5, unit="m", published=2., required=1., met=met,
                note=note)


def run(name, **values):
    stage = SimpleNamespace(name=name, makes="teachers & drones", pictures="figures/*.png")
    return SimpleNamespace(**dict(stage=stage, seconds=7., peak=2e9, report="") | values)


ROWS = [row("good", True), row("poor", False), row("<other>", None)]


def test_the_page_says_what_came_out_before_what_was_checked():
    page = R.report_page("quick", ROWS, [run("03_pretrain")], "It survives <all>.", ["a_b.png"],
                         "seed: 1", "8 drones")
    texts = ("<h1>raptor_nb: quick", "It survives &lt;all&gt;.", "1 of 2 checks is not met: poor.",
             "8 drones", "✗ not met", "✓ met", "&lt;other&gt;", "figures/a_b.png",
             "03_pretrain.ipynb", "teachers &amp; drones", "7 s", "2.0 GB", "seed: 1")
    places = [page.index(text) for text in texts]
    assert places == sorted(places)
    assert "<other>" not in page and "<all>" not in page


def test_the_page_needs_nothing_but_itself():
    page = R.report_page("quick", ROWS, [run("03_pretrain")])
    assert "http" not in page and "<script" not in page and "<link" not in page


def test_the_page_speaks_of_checks():
    page = R.report_page("quick", ROWS, [run("03_pretrain")]).split("</style>")[1]
    words = set(re.findall(r"[a-z]+", re.sub(r"<[^>]+>", " ", page).lower()))
    assert not {"verdict", "bar", "bars", "missed", "cleared"} & words


def test_what_is_not_met_is_never_folded_away():
    rows = [row(f"good {i}", True) for i in range(40)] + [row(f"poor {i}", False) for i in range(20)]
    shown, folded = R.checks_table(rows).split("<details>")
    assert shown.count("✗ not met") == 20 and "✓ met" not in shown
    assert folded.count("✓ met") == 40 and "40 more checks, all met" in folded


def test_figures_without_checks():
    table = R.checks_table([row("a", None)])
    assert table.strip().startswith("<details><summary>1 figures</summary>")
    assert R.checks_table([]).strip() == ""


@pytest.mark.parametrize("met, sentence", [
    ([], ""), ([None], ""), ([True], "The one check is met."),
    ([True, True, None], "All 2 checks are met."),
    ([False, True], "1 of 2 checks is not met: a0."),
    ([False, False], "2 of 2 checks are not met: a0, a1."),
])
def test_checks_sentence(met, sentence):
    assert R.checks_sentence([row(f"a{i}", m) for i, m in enumerate(met)]) == sentence


def test_cost_is_what_made_the_files():
    rows = R.cost_rows([run("03_pretrain"), run("04_distill", seconds=3., peak=5e9)], None)
    assert {r["name"]: r["value"] for r in rows} == {
        "wall time": 10, "wall time 03_pretrain": 7, "wall time 04_distill": 3, "peak memory": 5}


# --- shipping

OTHERS = set(FILES) - {"student.h5"}


@pytest.fixture
def finished(tmp_path):
    "A folder of a run that is finished"
    out = tmp_path / "out"
    out.mkdir()
    student = RaptorPolicy()
    student.save(out / "student.safetensors")
    student.to_hdf5(out / "student.h5")
    for name in OTHERS: (out / name).write_bytes(b"exported")
    settings = load_config("quick").to_dict()
    write_manifest(out / "student.safetensors", settings=settings, seed=42)
    return out


def test_shipping_leaves_nothing_of_another_student(finished, tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "student.int8.tflite").write_bytes(b"of another student")
    R.ship(finished, weights, [])
    assert (weights / "student.h5").read_bytes() == (finished / "student.h5").read_bytes()
    assert {p.name for p in weights.iterdir()} == {*R.SHIPPED, "README.md"}


def test_a_student_of_another_size_ships_without_what_its_size_has_not(finished, tmp_path):
    "And leaves no archive for PX4 of the student before"
    RaptorPolicy(hidden_dim=32).save(finished / "student.safetensors")
    (finished / "student.px4.tar").unlink()
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "student.px4.tar").write_bytes(b"of another student")
    R.ship(finished, weights, [])
    assert {p.name for p in weights.iterdir()} == {*R.SHIPPED, "README.md"} - {"student.px4.tar"}


def test_nothing_is_shipped_if_a_file_is_missing(finished, tmp_path):
    (finished / "student.onnx").unlink()
    with pytest.raises(FileNotFoundError, match="student.onnx' to ship; run the pipeline first"):
        R.ship(finished, tmp_path / "weights", [])
    assert not (tmp_path / "weights").exists()


def test_the_card_compares_with_the_published_policy(finished, tmp_path):
    rows = [row("RMSE of student, a", None, "better: -1"), row("RMSE of student, b", None, "NOT better"),
            row("RMSE of student, c", None, "equal"), row("RMSE of published, c", None)]
    R.ship(finished, tmp_path / "weights", rows)
    card = (tmp_path / "weights/README.md").read_text()
    for line in ("| RMSE, a | 1.5 | 2 | yes |", "| RMSE, b | 1.5 | 2 | **no** |",
                 "| RMSE, c | 1.5 | 2 | equal |"): assert line in card
    assert "RMSE of published" not in card


def test_pictures_are_copied(tmp_path):
    (tmp_path / "figures").mkdir()
    for name in ("b.png", "a.png", "a.csv"): (tmp_path / "figures" / name).write_text(name)
    assert R.copy_pictures(tmp_path, "figures/*.png", tmp_path / "report") == ["a.png", "b.png"]
    assert (tmp_path / "report/a.png").read_text() == "a.png"
    assert R.copy_pictures(tmp_path, "", Path("nowhere")) == []
