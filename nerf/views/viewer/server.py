"""The viewer: viser's server behind a door, a client for each browser, one loop that renders for all."""

from __future__ import annotations

import contextlib
import io
import json
import threading
import time
from pathlib import Path
from typing import Any

from nerf.errors import UserError, brief, note
from nerf.io.json_text import parse_json
from nerf.views.viewer.client import Client
from nerf.views.viewer.door import Door, is_local, new_token
from nerf.views.viewer.edited import cut_mesh
from nerf.views.viewer.edits import EDITS_FILE
from nerf.views.viewer.loop import RenderLoop
from nerf.views.viewer.pace import BUDGETS
from nerf.views.viewer.quiet import Quiet
from nerf.views.viewer.sharing import SharedTraining
from nerf.views.viewer.subject import Subject

PORT = 8080
TOLD_EVERY = 1.0  # seconds between what clients are told of a training
MISSING = "the viewer needs viser, which is not installed: pip install 'nerf-reconstruct[view]'"


def import_viser() -> Any:
    """viser; UserError in one sentence where it is missing."""
    try:
        import viser
    except ImportError as error:
        if error.name not in (None, "viser"):
            raise UserError(f"{MISSING} ({error.name} is missing)") from None
        raise UserError(MISSING) from None
    return viser


class Viewer:
    """Serves a subject from its making until `close`. training: it is being trained by this process, and
    `self.sharing` is what `train` is to call between its steps."""

    def __init__(self, subject: Subject, host: str = "127.0.0.1", port: int = PORT, training: bool = False) -> None:
        viser = import_viser()
        self.subject = subject
        self.loop = RenderLoop()
        self.training = training
        self.sharing = SharedTraining(self.loop, self._watch) if training else None
        self.progress: tuple[Any, str] | None = None
        self.check_says = _check_says(subject.folder)
        self._told_at = -1e9
        self._left_out: tuple[str, ...] = ()  # photos that the training knows of
        self._clients: dict[int, Client] = {}
        self._lock = threading.RLock()
        self._quiet = Quiet()
        token = None if is_local(host) else new_token()
        with contextlib.redirect_stdout(io.StringIO()):  # it tells an address that is not the one to open
            self.server = viser.ViserServer(host="127.0.0.1", port=_free_port(), label=subject.name, verbose=False)
        self.server.request_share_url = lambda *_, **__: None  # never through somebody else's tunnel
        try:
            self.door = Door(host, port, self.server.get_port(), token)
        except UserError:
            self.server.stop()
            self._quiet.close()
            raise
        self.server.gui.configure_theme(show_logo=False, show_share_button=False, brand_color=(38, 112, 200))
        self.server.scene.configure_default_lights(True, cast_shadow=False)
        if subject.model is not None or subject.mesh is not None:
            self._set_first_view()
        subject.history.told.append(self._changed)
        subject.changed.append(self._changed)
        self.server.on_client_connect(self._connect)
        self.server.on_client_disconnect(self._disconnect)
        if not training:
            self.loop.start()

    @property
    def address(self) -> str:
        """What is opened in a browser."""
        return self.door.address

    def close(self) -> None:
        """End all connections and threads."""
        self.loop.stop()
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.close()
        self.door.close()
        end = time.monotonic() + 2.0
        while self.server.get_clients() and time.monotonic() < end:  # viser still tells of those that go
            time.sleep(0.02)
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()
        self._quiet.close()

    # ---- browsers

    @property
    def clients(self) -> list[Client]:
        with self._lock:
            return list(self._clients.values())

    def _connect(self, handle: Any) -> None:
        try:
            client = Client(self, handle)
        except Exception as error:
            note(f"viewer: a browser could not be served: {type(error).__name__}: {brief(error)}")
            return
        with self._lock:
            self._clients[handle.client_id] = client
        if handle.client_id not in self.server.get_clients():  # it has gone meanwhile
            self._disconnect(handle)

    def _disconnect(self, handle: Any) -> None:
        with self._lock:
            client = self._clients.pop(handle.client_id, None)
        if client is not None:
            client.close()

    def _changed(self) -> None:
        """The edits, the photos or the mesh: every client's page follows."""
        if self.subject.model is not None or self.subject.mesh is not None:
            self._set_first_view()
        for client in self.clients:
            client.safely(client.redraw)()

    def _set_first_view(self) -> None:
        c2w, fov = self.subject.first_view()
        frame, camera = self.subject.frame(), self.server.initial_camera
        position = frame.points(c2w[None, :, 3])[0]
        forward = frame.from_world.apply_directions(-c2w[None, :, 2])[0]
        distance = max(-float(position @ forward), 0.25)
        camera.position, camera.look_at = tuple(position.tolist()), tuple((position + distance * forward).tolist())
        camera.fov = fov * 3.141592653589793 / 180

    def cut_mesh(self) -> Any:
        """The subject's mesh as the edits leave it."""
        assert self.subject.mesh is not None
        return cut_mesh(self.subject.mesh, self.subject.edits)

    # ---- beside a training

    @property
    def paused(self) -> bool:
        return self.sharing is not None and self.sharing.paused

    def check_no_training(self, what: str) -> None:
        """UserError where a training has the field for itself."""
        if self.training:
            raise UserError(f"{what} can be made when training is done: stop it, or wait")

    def pause(self, on: bool) -> None:
        assert self.sharing is not None
        self.sharing.pause(on)
        if self.progress is not None:
            self._tell(self.progress[0], "paused" if on else "training")

    def stop_training(self) -> None:
        assert self.sharing is not None
        self.sharing.stop()

    def _watch(self, trainer: Any) -> None:
        """Between two steps of the training."""
        subject = self.subject
        first = subject.model is None
        if first:
            subject.model = trainer.model
            self._set_first_view()
        now = self.loop.clock()
        if not first and now - self._told_at < TOLD_EVERY and not self.paused:
            return
        if first:
            for client in self.clients:
                client.safely(client.redraw)()
                client.safely(lambda c=client: c.go_to(*subject.first_view()))()
        if now - self._told_at >= TOLD_EVERY:
            self._told_at = now
            self._leave_out(trainer)
            subject.revision += 1
            if not self.paused:
                for client in self.clients:
                    client.viewport.pace.refresh()
            self._tell(trainer, "paused" if self.paused else "training")

    def _leave_out(self, trainer: Any) -> None:
        """Have the training learn from the photos that the edits leave in."""
        names = self.subject.edits.left_out
        if names != self._left_out:
            self._left_out = names  # whatever comes of it: what cannot be done is told once
            try:
                trainer.leave_out_photos(names, EDITS_FILE)
            except UserError as error:
                note(f"viewer: {error}")
                for client in self.clients:
                    client.said("That did not work", str(error), bad=True)

    def _tell(self, trainer: Any, state: str) -> None:
        self.progress = (trainer, state)
        for client in self.clients:
            if client.training is not None:
                client.safely(client.training.update)(trainer, state)

    def training_begins(self, scene: Any) -> None:
        """The photos are loaded; the model is there after the first step."""
        folder = self.subject.folder
        self.check_says = _check_says(folder)
        self.subject.open_edits()
        self._left_out = self.subject.edits.left_out
        self.subject.scene = scene
        for client in self.clients:
            if client.training is not None:
                client.safely(client.training.tell_check)()

    def training_ended(self, model: Any) -> None:
        """Its own thread renders no more; the viewer goes on by itself."""
        self.training = False
        self.subject.model = model
        self.subject.revision += 1
        self.subject.set_scene(self.subject.scene)  # with the poses as they were refined
        if self.progress is not None:
            self._tell(self.progress[0], "done")
        for client in self.clients:
            client.viewport.pace.budgets = BUDGETS
        self.loop.start()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _check_says(folder: Path | None) -> str:
    """What `nerf check` found, as the run's folder holds it; nothing where it was not asked."""
    file = None if folder is None else folder / "check.json"
    if file is None or not file.is_file():
        return ""
    try:
        said = parse_json(file.read_bytes()).get("paragraph", "")
    except (OSError, ValueError, AttributeError, json.JSONDecodeError):
        return ""
    return said if isinstance(said, str) else ""
