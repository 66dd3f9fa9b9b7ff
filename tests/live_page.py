"A page of ui-server to send drones to, and what it is told"
import json
import socket
import time

import pytest


@pytest.fixture
def page():
    "(address for a live view, a listener in place of the browser)"
    ui_server = pytest.importorskip("ui_server.ui_server")
    client = pytest.importorskip("websockets.sync.client")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    ui_server.Server(port=port, scenario="generic").run_in_background()
    for _ in range(300):
        try: listener = client.connect(f"ws://127.0.0.1:{port}/ui", max_size=None)
        except OSError: time.sleep(.1)
        else: break
    yield f"ws://127.0.0.1:{port}/backend", listener
    listener.close()


def told(listener, channel):
    "The next message of a channel"
    while True:
        message = json.loads(listener.recv(timeout=20))
        if message["channel"] == channel: return message["data"]
