"Pictures of flights, and flights that are shown live"
import numpy as np
import pytest

from live_page import page, told  # noqa: F401
from raptor_nb.drones import real_drones, with_conditions
from raptor_nb.environment import QuadrotorEnv, QuadrotorVectorEnv
from raptor_nb.sim import render, rollout
from raptor_nb.sim.l2f import Simulator

pytest.importorskip("l2f", reason="l2f is not installed: pip install 'raptor-nb[sim]'")


def test_picture():
    env = QuadrotorEnv("crazyflie", render_mode="rgb_array")
    env.reset(seed=0, options=dict(position=[.2, .2, .1]))
    first = env.render()
    assert first.shape == (480, 640, 3) and first.dtype == np.uint8
    assert (first < 250).any(-1).mean() > .02
    env.step(np.ones(4))
    env.reset(options=dict(position=[-.2, -.2, 0], tilt=.5))
    assert (first != env.render()).any(-1).mean() > .01 and len(env.trail) == 1
    assert QuadrotorEnv("crazyflie").render() is None


def test_pictures_of_a_fleet():
    env = QuadrotorVectorEnv(["x500", "crazyflie"], render_mode="rgb_array")
    env.reset(seed=0)
    for _ in range(5): env.step(np.zeros((2, 4)))
    assert len(env._trail) == 6
    assert [f.shape for f in env.render()] == [(480, 640, 3)] * 2


def test_a_camera_stops_where_the_flight_ends():
    "Rotors at rest: the drone falls, and no picture is taken afterwards"
    camera, fall = rollout.Camera(every=5), lambda obs: -np.ones((len(obs), 4), np.float32)
    drone, statistics = real_drones()["crazyflie"], rollout.FlightStatistics()
    rollout.rollout(fall, Simulator([drone] * 2), 200, [camera, statistics])
    assert len(camera.pictures) == -(-statistics.length[0] // 5) < 40


def test_a_live_view_shows_every_step(page, monkeypatch):  # noqa: F811
    url, listener = page
    monkeypatch.setattr(render.LiveView.__init__, "__defaults__", (url, .5))
    env = QuadrotorVectorEnv("crazyflie", 3, render_mode="human")
    env.reset(seed=0)
    for channel in ("setUI", "setParameters", "setState"): told(listener, channel)
    for _ in range(20): env.step(np.zeros((3, 4), np.float32))
    shown = [told(listener, "setState") for _ in range(20)][-1]
    assert env.render() is None
    places = np.array([drone["position"] for drone in shown["state"]][:3])
    places -= [[0, 0, 0], [.5, 0, 0], [1, 0, 0]]
    np.testing.assert_allclose(places, env.simulator.position(), atol=1e-5)
    env.close()


def test_policies_are_watched_while_they_are_evaluated(page, monkeypatch):  # noqa: F811
    url, listener = page
    monkeypatch.setattr(render.LiveView.__init__, "__defaults__", (url, .5))
    drones = [with_conditions(real_drones()["crazyflie"], terminate=False)] * 2
    policies = {"falls": lambda obs: np.full((2, 4), -1, np.float32),
                "hovers": lambda obs: np.zeros((2, 4), np.float32)}
    table, tracks = rollout.evaluate(policies, drones, steps=20, record=True, live=True)
    assert (table.steps == 20).all()
    for channel in ("setUI", "setParameters"): told(listener, channel)
    shown = [told(listener, "setState") for _ in range(40)]
    for policy, message in (("falls", shown[18]), ("hovers", shown[-2])):
        places = np.array([drone["position"] for drone in message["state"]][:2])
        expected = tracks[policy]["position"][:, 19] + [[0, 0, 0], [.5, 0, 0]]
        np.testing.assert_allclose(places, expected, atol=1e-5)
