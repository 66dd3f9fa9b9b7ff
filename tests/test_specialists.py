"Teachers on drones that are not theirs"
import pytest

from raptor_nb.drones import load_drone, sample_fleet, save_fleet
from raptor_nb.evaluation.specialists import drone_indices, load_specialists, load_teachers
from raptor_nb.evaluation.specialists import nearest_drones
from raptor_nb.policy import EvaluationError, Teachers


def test_nearest_is_the_twin():
    fleet = sample_fleet(30)
    index, distance = nearest_drones(fleet[10:20], fleet)
    assert index.tolist() == list(range(10, 20)) and distance.max() < 1e-9
    assert nearest_drones(fleet[:2], fleet[5:6])[0].tolist() == [0, 0]


@pytest.mark.parametrize("ids, drones, indices", [
    ([6, 4], sample_fleet([4, 5, 6]), [2, 0]), ([0, 2], sample_fleet([4, 5, 6]), [0, 2]),
    ([1], [load_drone("x500"), load_drone("crazyflie")], [1])],
    ids=["names-are-numbers", "places", "names"])
def test_whose_teacher(ids, drones, indices):
    assert drone_indices(Teachers(len(ids), ids=ids), drones) == indices


def stack(folder, ids): return Teachers(len(ids), ids=ids).save(folder / "teachers.safetensors")


def test_teachers_come_with_their_drones(tmp_path):
    save_fleet(sample_fleet(4), tmp_path / "drones.json")
    teachers, drones = load_teachers(stack(tmp_path, [3, 1]), tmp_path / "drones.json")
    assert teachers.ids == (3, 1) and [d.name for d in drones] == ["0003", "0001"]


def test_missing_files_are_named(tmp_path):
    files = tmp_path / "teachers.safetensors", tmp_path / "drones.json"
    make = "; make them with: papermill nbs/03_pretrain.ipynb"
    with pytest.raises(FileNotFoundError, match=f"there are no teachers '.*'{make}"):
        load_teachers(*files)
    stack(tmp_path, [0])
    with pytest.raises(FileNotFoundError, match=f"there are no drones '.*drones.json'{make}"):
        load_teachers(*files)


def test_teachers_of_another_fleet_are_refused(tmp_path):
    save_fleet(sample_fleet(12), tmp_path / "drones.json")
    message = "a teacher for drone 12, but no such drone among the 12"
    with pytest.raises(EvaluationError, match=message):
        load_teachers(stack(tmp_path, [0, 12]), tmp_path / "drones.json")


def test_too_few_specialists_are_refused(tmp_path):
    with pytest.raises(EvaluationError, match="holds teachers for 2 of 12 held-out drones"):
        load_specialists(stack(tmp_path, [0, 1]), sample_fleet(12))
