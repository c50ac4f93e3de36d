"""What a viewer shows: a model, the photos that it was trained on, a mesh; and the edits that belong to them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nerf.errors import UserError, brief, note
from nerf.geometry.aim import common_up, look_at, look_at_point
from nerf.geometry.cameras import Cameras
from nerf.geometry.light import shown_as
from nerf.geometry.mesh_files import load_mesh_file
from nerf.geometry.triangles import MESH_KINDS, WORLD_NODE, read_textured_mesh
from nerf.io.folders import model_files
from nerf.io.pictures import resized, to_display
from nerf.rendering.model import Model
from nerf.training.alignment import as_trained
from nerf.training.evaluation import mask_of, truth_of
from nerf.training.runs import model_of_run, scene_of_run
from nerf.views.viewer.edited import edited
from nerf.views.viewer.edits import EDITS_FILE, Edits, History, read_edits, write_edits
from nerf.views.viewer.frame import PageFrame

if TYPE_CHECKING:
    import trimesh

THUMBNAIL = 96  # pixels along the longer side of a photo in its frustum
KEPT_PHOTOS = 4  # decoded, for the comparison


@dataclass
class InputPhoto:
    """An input camera and its photo as the viewer compares them."""

    name: str
    cameras: Cameras  # of one camera
    read: Callable[[], tuple[np.ndarray, np.ndarray | None]]

    def pixels(self) -> tuple[np.ndarray, np.ndarray | None]:
        return self.read()


class Subject:
    """scene: None until the photos are loaded, and where they are gone. revision: counts what training has changed."""

    def __init__(
        self, name: str, model: Model | None = None, mesh: trimesh.Trimesh | None = None, folder: Path | None = None
    ) -> None:
        self.name, self.model, self.mesh, self.folder = name, model, mesh, folder
        self.scene: Any = None
        self.mesh_up: Tensor | None = None
        self.history = History(save=self._save_edits)
        self.open_edits()
        self.revision = 0
        self.changed: list[Callable[[], None]] = []  # called when photos or a mesh have come
        self._shown: tuple[Any, Model] | None = None
        self._lock = threading.Lock()
        self._photo = lru_cache(maxsize=KEPT_PHOTOS)(self._decode)

    # ---- edits

    @property
    def edits(self) -> Edits:
        return self.history.now

    def open_edits(self) -> None:
        """Those that the folder holds; nothing can be undone yet."""
        self.history.now = Edits() if self.folder is None else read_edits(self.folder)
        self.history.before, self.history.after = [], []

    def _save_edits(self, edits: Edits) -> None:
        if self.folder is not None and (not edits.empty or (self.folder / EDITS_FILE).exists()):
            write_edits(self.folder, edits)

    def shown(self) -> Model | None:
        """The model as the edits leave it; of a model in training as it is now."""
        model = self.model
        if model is None:
            return None
        edits = self.edits
        key = (model, edits.shape, self.revision if edits.hidden else 0)
        with self._lock:
            if self._shown is None or self._shown[0] != key:
                self._shown = (key, edited(model, edits))
            return self._shown[1]

    # ---- where things are

    def frame(self) -> PageFrame:
        """The page's frame: upright as edited, else as the cameras say."""
        up, edits = self.edits.up_direction(), self.edits
        if self.model is not None:
            cameras, to_scene = self.model.cameras, self.model.scene_from_world
            centre = look_at_point(cameras, to_scene, self.model.space) if len(cameras) else torch.zeros(3).double()
            up, scale = common_up(cameras)[0] if up is None and len(cameras) else up, to_scene.scale
        elif self.mesh is None:  # a training that has not begun
            centre, scale = torch.zeros(3, dtype=torch.float64), 1.0
        else:
            low, high = (torch.from_numpy(np.array(x, np.float64)) for x in self.mesh.bounds)
            centre, scale = (low + high) / 2, 2.0 / max(float((high - low).max()), 1e-12)
            up = self.mesh_up if up is None else up
        up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64) if up is None else up
        if edits.ground is not None:  # straight below what is looked at
            ground = torch.tensor(edits.ground, dtype=torch.float64)
            centre = centre + float((ground - centre) @ up) * up
        return PageFrame.around(centre, up, scale)

    def first_view(self) -> tuple[Tensor, float]:
        """(world pose [3,4], vertical field of view in degrees) that a client begins with: near the cameras, looking
        at what they look at; for a mesh from a little above its front."""
        frame = self.frame()
        up = frame.directions_to_world(torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64))[0]
        if self.model is None or not len(self.model.cameras):
            place = frame.to_world(torch.tensor([[1.6, -2.6, 1.3]], dtype=torch.float64))
            return look_at(place, frame.to_world(torch.zeros(1, 3).double())[0], up)[0], 45.0
        cameras = self.model.cameras
        centre = look_at_point(cameras, self.model.scene_from_world, self.model.space)
        if not self.model.space.bounded:  # inside a scene, only where a photo was taken is anything sure to be seen
            middle = cameras.centres.double().mean(dim=0)
            i = int((cameras.centres.double() - middle).norm(dim=1).argmin())
            ahead = centre if not self.model.space.warped else cameras.centres[i].double() + cameras.forward[i].double()
            if float((ahead - cameras.centres[i].double()).norm()) > 1e-6:
                return look_at(cameras.centres[i : i + 1].double(), ahead, up)[0], 55.0
            return cameras.c2w[i].double(), 55.0
        heights = ((cameras.centres.double() - centre) @ up).abs()
        i = int((heights - heights.median()).abs().argmin())
        away = cameras.centres[i].double() - centre
        return look_at((centre + away)[None], centre, up)[0], 45.0

    # ---- photos

    def load_photos(self, data: Path | None = None) -> None:
        """Load the scene of the run, which can take a while; a note where it is gone."""
        if self.model is None or self.folder is None or self.scene is not None:
            return
        try:
            self.set_scene(scene_of_run(self.folder, self.model.meta, data))
        except UserError as error:
            if data is not None:
                raise
            note(f"viewer: without the photos: {error}")
        except Exception as error:  # a viewer without photos is better than none
            note(f"viewer: without the photos: {type(error).__name__}: {brief(error)}")

    def set_scene(self, scene: Any) -> None:
        self.scene = scene if self.model is None else as_trained(scene, self.model)
        self.tell()

    def open_mesh(self) -> None:
        """Take the mesh of the run's folder, if there is one."""
        file = None if self.folder is None else self.folder / "mesh.glb"
        if file is None or not file.is_file():
            return
        try:
            self.mesh = read_textured_mesh(file)
        except UserError as error:
            note(f"viewer: without the mesh: {error}")
        self.tell()

    def tell(self) -> None:
        """What there is has changed."""
        for tell in list(self.changed):
            tell()

    def cameras(self) -> tuple[list[str], Cameras | None]:
        """Names and input cameras: all of the scene, or those that the model knows."""
        if self.scene is not None:
            return list(self.scene.names), self.scene.cameras
        if self.model is None or not len(self.model.cameras):
            return [], None
        n = len(self.model.cameras)
        names = self.model.names if len(self.model.names) == n else [f"camera {i}" for i in range(n)]
        return names, self.model.cameras

    def held_out(self, i: int) -> bool:
        """Whether an input camera was kept out of training."""
        return self.scene is not None and i not in set(self.scene.splits["train"].tolist())

    def names(self) -> list[str]:
        """Of the input cameras' photos; none where only their cameras are known."""
        return list(self.scene.names) if self.scene is not None else [] if self.model is None else self.model.names

    def left_out(self, i: int) -> bool:
        """Whether an input camera's photo is left out of training by the edits."""
        return self.cameras()[0][i] in self.edits.left_out

    def leave_out(self, i: int, out: bool) -> None:
        """Leave the photo of an input camera out of training from now on, or bring it back. UserError where it is not
        trained on anyway, or nothing would be left."""
        name, before = self.cameras()[0][i], set(self.edits.left_out)
        if out and self.held_out(i):
            raise UserError(f"{name} is not trained on anyway: it is kept to measure by")
        names = before | {name} if out else before - {name}
        if self.scene is not None and {self.scene.names[k] for k in self.scene.splits["train"].tolist()} <= names:
            raise UserError("one photo at least must stay in training")
        self.history.change(left_out=tuple(sorted(names)))

    def photo(self, i: int) -> InputPhoto | None:
        """An input camera with its photo; None while there are no photos."""
        if self.scene is None or self.model is None:
            return None
        return InputPhoto(self.scene.names[i], self.scene.cameras.subset([i]), lambda: self._photo(i))

    def _decode(self, i: int) -> tuple[np.ndarray, np.ndarray | None]:
        assert self.model is not None
        light = truth_of(self.scene, i, self.model.background)
        mask = mask_of(self.scene, i)
        return shown_as(self.model, light).clamp(0, 1).numpy(), None if mask is None else mask.numpy()

    def thumbnail(self, i: int) -> np.ndarray:
        """A photo as a small picture [h,w,3] uint8."""
        assert self.model is not None
        light = truth_of(self.scene, i, self.model.background)
        step = max(1, int(max(light.shape[:2]) // (4 * THUMBNAIL)))
        picture = to_display(light[::step, ::step].numpy() * self.model.exposure, self.model.linear)
        return resized(picture, THUMBNAIL)

    def sparse_points(self) -> Tensor | None:
        """[m,3] world; None where the data set has none."""
        points = None if self.scene is None else self.scene.points
        return None if points is None or not len(points) else points.double()

    def occupied_cells(self, most: int) -> Tensor | None:
        """Centres [m,3], world, of the cells that rays stop in, evenly chosen where there are more than `most`."""
        model = self.model
        if model is None or model.space.warped or model.n_cells:
            return None
        cells = model.occupancy.occupied.reshape(-1).nonzero()[:, 0]
        cells = cells[:: max(1, -(-len(cells) // most))]
        centres = model.occupancy.cell_centres(cells)[0].double().cpu()
        return model.scene_from_world.inverse().apply(model.space.points_to_scene(centres))


def open_subject(path: Path) -> Subject:
    """A run's folder, a checkpoint, or a mesh file. UserError for everything else."""
    if path.suffix.lower() in MESH_KINDS:
        subject = Subject(path.name, mesh=read_textured_mesh(path))
        subject.mesh_up = _up_of(path)
        return subject
    folder, checkpoint = model_files(path, blocks=True)
    subject = Subject(folder.resolve().name, model_of_run(checkpoint), folder=folder)
    subject.open_mesh()
    return subject


def _up_of(path: Path) -> Tensor:
    """Which way is up in a mesh file, in the coordinates that `read_textured_mesh` gives: glTF says y, and our own
    files how they turned the world to that; of other formats most programs take z."""
    if path.suffix.lower() != ".glb":
        return torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    up = np.array([0.0, 1.0, 0.0])
    graph = getattr(load_mesh_file(path), "graph", None)
    if graph is not None and WORLD_NODE in graph.nodes:
        turn = np.asarray(graph.get(WORLD_NODE)[0], np.float64)[:3, :3]
        up = np.linalg.solve(turn, up)
    return torch.from_numpy(up / np.linalg.norm(up))
