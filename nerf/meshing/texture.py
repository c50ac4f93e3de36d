"""Texture from photos: which photo colours which part of the mesh, and the colours of every texel.

Every vertex rates every photo by how much of it the photo shows: visible (against a depth buffer of the mesh, with a
margin beside silhouettes), seen straight on, and near. The ratings are smooth over the surface, so photos blend across
seams, and count by their squares. Each face takes its few best photos; their colours at a texel are averaged, and those
that disagree with the others (specular highlights, passers-by) count less. The field colours what no photo shows.
The rating by projected area and the removal of disagreeing photos follow Waechter, Moehrle and Goesele, "Let There Be
Color! Large-Scale Texturing of 3D Reconstructions", 2014, sections 3.1 and 3.2.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nerf.geometry.light import encode
from nerf.io.memory import trim_heap
from nerf.meshing.agreement import find_agreement
from nerf.meshing.atlas import Atlas, fill, texels
from nerf.meshing.preview import bilinear, facing, rasterise, seam
from nerf.training.exposure import darkened_by_distance, darkened_by_lens, remove_exposure

if TYPE_CHECKING:
    from nerf.datasets import Scene
    from nerf.geometry.cameras import Cameras
    from nerf.rendering.model import Model

PHOTOS_PER_FACE = 12  # that colour a face, at most
_SHARPNESS = 1  # power of a rating (already squared lengths): how clearly the best photo wins
_MARGIN = 2  # pixels beside a silhouette in which what lies behind it does not take its colour from the photo
_NEAREST = 1e-4  # scene units: what is nearer to a camera does not count for more
_AGREEMENT = 0.08  # colours that differ by more from the mean of the others count less
_CHUNK = 1 << 18
_RATINGS = 1 << 26  # numbers gathered at once, of which each face has three for every photo


def photo_ratings(scene: Scene, vertices: Tensor, faces: Tensor, normals: Tensor, photos: Tensor) -> Tensor:
    """How well each photo [n] of the scene shows each vertex: [n,v] float32, 0 where it does not; relative, larger is
    better. vertices [v,3], normals [v,3] (unit, outward), faces [f,3], world frame."""
    ratings = torch.zeros(len(photos), len(vertices))
    for row, i in enumerate(photos.tolist()):
        ratings[row] = _rating(scene, i, vertices, faces, normals)
    return ratings


def _rating(scene: Scene, i: int, vertices: Tensor, faces: Tensor, normals: Tensor) -> Tensor:
    camera = scene.cameras.subset([i])
    h, w = int(camera.heights[0]), int(camera.widths[0])
    uv, z = (t[0] for t in camera.project(vertices))
    pixel, face, weights = rasterise(uv, z, faces, w, h, seam(camera))
    depth = torch.full((h * w,), torch.inf)
    depth[pixel] = (weights * z[faces[face]]).sum(dim=1).float()
    window = 2 * _MARGIN + 1
    in_front = -torch.nn.functional.max_pool2d(-depth.reshape(1, 1, h, w), window, 1, _MARGIN).flatten()

    cosine, slope = facing(camera, vertices, normals)
    scale = scene.scene_from_world.scale
    # pixels per length, seen straight on; behind a camera there is none, and nothing infinite either: it times "not
    # visible" would be NaN
    density = camera.fx[0] / z.clamp_min(_NEAREST / scale)
    inside = (z > 0) & (uv >= _MARGIN).all(dim=1) & (uv[:, 0] < w - _MARGIN) & (uv[:, 1] < h - _MARGIN)
    at = (uv[:, 1].clamp(0, h - 1).long() * w + uv[:, 0].clamp(0, w - 1).long()).where(inside, torch.zeros(1).long())
    tolerance = (1.5 + 1.5 * _MARGIN * slope) / density  # within the window a slanted surface comes nearer by itself
    visible = inside & (cosine > 0.1) & (z - in_front[at].double() <= tolerance)
    visible &= shown_pixels(scene, i)[at]
    return (visible * (density / scale).square() * cosine.clamp_min(0).square()).float()


def shown_pixels(scene: Scene, i: int) -> Tensor:
    """Pixels [h*w] of photo i that show the scene: opaque, and inside the mask."""
    h, w = int(scene.pixels.heights[i]), int(scene.pixels.widths[i])
    shown = torch.ones(h * w, dtype=torch.bool)
    if scene.has_alpha:
        shown &= scene.pixels.image(i)[..., -1].flatten() > 0.95
    elif scene.silhouettes is not None:
        shown &= torch.from_numpy(scene.silhouette(i)).flatten()
    if scene.masks is not None:
        shown &= torch.as_tensor(scene.masks.image(i))[..., 0].flatten() > 0.5
    return shown


def feather_ratings(ratings: Tensor, faces: Tensor, rounds: int = 2) -> Tensor:
    """Ratings [n,v] that fade out towards what a photo does not show: at most their neighbours' mean."""
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    nothing, ends, others = torch.zeros(ratings.shape[1]), edges.flatten(), edges.flip(1).flatten()
    count = nothing.index_add(0, ends, torch.ones(len(ends))).clamp_min(1)
    for _ in range(rounds):
        for row in ratings:
            mean = nothing.index_add(0, ends, row[others]) / count
            torch.minimum(row, mean, out=row)
    return ratings


def bake(
    model: Model,
    scene: Scene,
    atlas: Atlas,
    vertices: Tensor,
    normals: Tensor,
    photos: Tensor,
    ratings: Tensor,
    gains: Tensor,
) -> Tensor:
    """The texture [h,w,3] float32, sRGB values, of a mesh: vertices and normals [v,3], world frame; ratings [n,v] and
    exposure_gains [n,3] of the photos [n]."""
    mesh_faces = atlas.corners[atlas.faces]
    ratings = feather_ratings(ratings, mesh_faces)
    picture_of = partial(_picture, model, scene, photos, gains)
    agreement = find_agreement(scene, vertices, mesh_faces, photos, picture_of, partial(without_flash, model))
    for row, i in enumerate(photos.tolist()):
        rated = (ratings[row] > 0).nonzero()[:, 0]
        uv = scene.cameras.subset([i]).project(vertices[rated])[0][0]
        ratings[row, rated] *= _agreed(scene, i, agreement[row], uv)
    flat, face, weights = texels(atlas)
    face, weights = face.int(), weights.float()  # there are many: a third of the memory
    middle = vertices.mean(dim=0)
    centred = vertices - middle
    k = min(PHOTOS_PER_FACE, len(photos))
    few = max(1, _RATINGS // (3 * len(photos)))  # faces at a time: bounded memory for any number of photos
    best = torch.cat([ratings[:, some].sum(dim=2).topk(k, dim=0).indices.T for some in mesh_faces.split(few)])
    # 8 bits and halves: of all that is held here they are most
    colors, shares = torch.zeros(len(flat), k, 3, dtype=torch.uint8), torch.zeros(len(flat), k, dtype=torch.half)
    highest = torch.cat([ratings[:, some].amax(dim=0).amax(dim=1) for some in mesh_faces.split(few)])
    highest.clamp_min_(1e-30)
    for row, i in enumerate(photos.tolist()):
        chosen = best == row
        rank_of_face = torch.where(chosen.any(dim=1), chosen.int().argmax(dim=1), -1)
        mine = (rank_of_face >= 0)[face].nonzero()[:, 0]
        if not len(mine):
            continue
        camera = scene.cameras.subset([i])
        picture = picture_of(row)
        for some in mine.split(_CHUNK):
            of, corner = weights[some].double(), mesh_faces[face[some].long()]
            points = _mean(of, centred[corner]) + middle
            share = (of * ratings[row][corner]).sum(dim=1).float()
            rank = rank_of_face[face[some].long()]
            uv = camera.project(points)[0][0]
            found = bilinear(picture, uv)
            found[:, :3] = without_flash(model, camera, points, found[:, :3])
            colors[some, rank] = (found[:, :3] * 255).round().clamp(0, 255).byte()
            share *= _agreed(scene, i, agreement[row], uv) * (found[:, 3] > 0.999)  # no colours of what is transparent
            shares[some, rank] = (share / highest[face[some].long()]).pow(_SHARPNESS).half()
    chunks = zip(colors.split(_CHUNK), shares.split(_CHUNK), strict=True)
    pairs = [blend_photos(found.float() / 255, share.float()) for found, share in chunks]
    color, seen = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    del colors, shares, pairs
    unseen = (~seen).nonzero()[:, 0]
    for some in unseen.split(_CHUNK):
        of, corner = weights[some].double(), mesh_faces[face[some].long()]
        color[some] = field_colors(model, _mean(of, centred[corner]) + middle, _mean(of, normals[corner]))
    texture, known = torch.zeros(atlas.size, atlas.size, 3), torch.zeros(atlas.size, atlas.size, dtype=torch.bool)
    texture.view(-1, 3)[flat], known.view(-1)[flat] = color, True
    del color, weights, flat, face
    trim_heap()
    return fill(texture, known).clamp_min(0)


def _picture(model: Model, scene: Scene, photos: Tensor, gains: Tensor, row: int) -> Tensor:
    """Colours [h,w,4] of the photo of a row in the common exposure, and in the last channel whether it shows them."""
    colors = load_photo_colors(model, scene, int(photos[row])) / gains[row]
    return torch.cat([colors, shown_pixels(scene, int(photos[row])).reshape(*colors.shape[:2], 1).float()], dim=2)


def _agreed(scene: Scene, i: int, agreement: Tensor, uv: Tensor) -> Tensor:
    """Agreement [h,w] of photo i at pixels uv [p,2] of the photo: [p]."""
    h, w = agreement.shape
    size = torch.tensor([w / int(scene.cameras.widths[i]), h / int(scene.cameras.heights[i])], dtype=uv.dtype)
    return bilinear(agreement[..., None], uv * size)[:, 0].float()


def _mean(weights: Tensor, corners: Tensor) -> Tensor:
    """[n,3] of corners [n,3,3] by their weights [n,3]."""
    return (weights[..., None] * corners).sum(dim=1)


def blend_photos(colors: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Mean colour [t,3] of the photos' colours [t,k,3] by their shares [t,k], those that disagree counting less, and
    where there was any [t]."""
    total = shares.sum(dim=1)
    weight = shares / total.clamp_min(1e-30)[:, None]
    mean = (weight[..., None] * colors).sum(dim=1)
    for _ in range(2):
        apart = (colors - mean[:, None]).square().sum(dim=2)
        doubt = weight / (1 + apart / _AGREEMENT**2)
        mean = (doubt[..., None] * colors).sum(dim=1) / doubt.sum(dim=1).clamp_min(1e-30)[:, None]
    return mean, total > 0


def exposure_gains(
    model: Model, scene: Scene, ratings: Tensor, vertices: Tensor, normals: Tensor, photos: Tensor, samples: int = 4096
) -> Tensor:
    """How much brighter each photo is than their common exposure, which the field shows: [n,3], 1 where it cannot be
    told, 1 in the (geometric) mean."""
    gains = torch.full((len(photos), 3), math.nan)
    for row, i in enumerate(photos.tolist()):
        seen = (ratings[row] > 0).nonzero()[:, 0]
        seen = seen[:: max(1, len(seen) // samples)]
        if len(seen) < 100:
            continue
        camera = scene.cameras.subset([i])
        towards = torch.nn.functional.normalize(camera.centres[0] - vertices[seen], dim=1)
        field = field_colors(model, vertices[seen], towards)
        photo = bilinear(load_photo_colors(model, scene, i), camera.project(vertices[seen])[0][0])
        photo = without_flash(model, camera, vertices[seen], photo)
        usable = ((field > 0.05) & (field < 0.95) & (photo > 0.05) & (photo < 0.95)).all(dim=1)
        if int(usable.sum()) >= 100:
            gains[row] = (photo[usable] / field[usable]).median(dim=0).values.clamp(0.25, 4.0).log()
    return (gains - gains.nanmean(dim=0)).nan_to_num(nan=0.0).exp()


def field_colors(model: Model, points: Tensor, towards: Tensor) -> Tensor:
    """What the field shows [n,3], as sRGB values, at world points [n,3] from the directions [n,3] that point away from
    the surface."""
    scene_points = model.scene_from_world.apply(points)
    directions = model.scene_from_world.apply_directions(torch.nn.functional.normalize(towards, dim=1))
    directions = model.space.directions_to_march(scene_points, directions)
    scene_points = model.space.points_to_march(scene_points)
    return _to_srgb(model, model.color(scene_points.float().contiguous(), -directions.float().contiguous()))


def without_flash(model: Model, camera: Cameras, points: Tensor, colors: Tensor) -> Tensor:
    """Colours [n,3] (sRGB values) of a photo by a camera [1] at points [n,3], world, as if its flash, where one was
    learnt, lit them from the reference distance."""
    if model.falloff is None:
        return colors
    distances = (points - camera.centres[0]).norm(dim=1).float() * model.scene_from_world.scale
    logs = darkened_by_distance(camera, model.cameras, model.falloff, distances)
    return remove_exposure(colors, logs, linear=False)


def load_photo_colors(model: Model, scene: Scene, i: int) -> Tensor:
    """Photo i as [h,w,3] float32, as it is shown: sRGB values, in the common exposure where training learnt one."""
    pixels = scene.pixels.image(i)
    colors = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1].expand(-1, -1, 3)
    if model.vignetting is not None:
        darker = darkened_by_lens(scene.cameras.subset([i]), model.cameras, model.vignetting)
        colors = remove_exposure(colors, darker, model.linear)
    if model.log_gains is not None and scene.names[i] in model.names:
        colors = remove_exposure(colors, model.log_gains[model.names.index(scene.names[i])], model.linear)
    return _to_srgb(model, colors)


def _to_srgb(model: Model, colors: Tensor) -> Tensor:
    """Colours as sRGB values in [0,1]; a texture is a picture, so photos are compared and blended as pictures."""
    return encode(colors * model.exposure).clamp(0, 1) if model.linear else colors
