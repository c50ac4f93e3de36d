"""The tab "Training": how far it is, and to hold or end it."""

from __future__ import annotations

import math
from datetime import timedelta
from html import escape
from typing import TYPE_CHECKING, Any

from nerf.errors import printable
from nerf.training.watched import curve_in_words
from nerf.views.curve import curve_svg, curves
from nerf.views.viewer.panels.look import small

if TYPE_CHECKING:
    from nerf.views.viewer.client import Client

LEARNT, HELD_OUT = "#2670c8", "#d06a1d"
_STYLE = (
    "<style>.nerf-curve svg{overflow:visible}"
    ".nerf-curve .rule{stroke:#e3e5e8;stroke-width:1}.nerf-curve .curve{fill:none;stroke:" + LEARNT + ";"
    "stroke-width:4}.nerf-curve .held-out{fill:none;stroke:" + HELD_OUT + ";stroke-width:4}"
    ".nerf-curve text{fill:#70757d;font-size:24px}</style>"
)


def curve(points: list[dict[str, float]]) -> str:
    """PSNR over time as it is drawn on the page; empty while there is too little of it."""
    found = curves({"curve": points})
    if not found:
        return small("The curve of PSNR over time begins after some steps.")
    drawing = curve_svg(found, width=760, height=380)
    kinds = {"psnr": (LEARNT, "photos learnt from"), "held_out": (HELD_OUT, "held-out photos")}
    words = ", ".join(f'<span style="color:{kinds[name][0]}">{kinds[name][1]}</span>' for name in found)
    return f'{_STYLE}<div class="nerf-curve" style="padding:0.5em 0.5em 0">{drawing}</div>{small(words)}'


def state_in_words(step: int, total: int | None, seconds: float, points: list[dict[str, float]], state: str) -> str:
    """One or two lines on how far a training with this curve is.

    >>> state_in_words(50, 200, 12.3, [{"psnr": 24.561}], "training")
    'training: step 50 of 200 (25 %), 0:00:12<br>PSNR 24.6 dB'
    """
    of = f" of {total} ({100 * step / total:.0f} %)" if total else ""
    shown = f"<br>{curve_in_words(math.nan, points)}" if points else ""
    return f"{state}: step {step}{of}, {timedelta(seconds=round(seconds))}{shown}"


class TrainingPanel:
    """For one client; told of the training's state by `update`."""

    def __init__(self, client: Client) -> None:
        self.client = client
        gui, safely = client.handle.gui, client.safely
        sharing = client.viewer.sharing
        assert sharing is not None
        self.sharing = sharing
        self.state = gui.add_html(small("training begins"))
        self.pause = gui.add_button("Resume" if sharing.paused else "Pause", color="gray")
        self.pause.on_click(safely(lambda _: client.viewer.pause(not sharing.paused)))
        self.stop = gui.add_button("Stop and save", hint="ends training here; the model is kept")
        self.stop.on_click(safely(lambda _: client.viewer.stop_training()))
        self.curve = gui.add_html("")
        with gui.add_folder("Photos against cameras", expand_by_default=False) as self.checked:
            self.said = gui.add_html("")
        self.tell_check()
        self._drawn = -1
        if client.viewer.progress is not None:
            self.update(*client.viewer.progress)

    def tell_check(self) -> None:
        """What `nerf check` found before the training."""
        said = self.client.viewer.check_says
        self.checked.visible = bool(said)
        self.said.content = small(escape(printable(said)))

    def update(self, trainer: Any, state: str) -> None:
        """How far it is now."""
        points = trainer.curve
        self.state.content = small(state_in_words(trainer.step, trainer.total_steps, trainer.seconds, points, state))
        over = state == "done"
        if self.pause.visible == over:
            self.pause.visible = self.stop.visible = not over
        label = "Resume" if self.sharing.paused else "Pause"
        if self.pause.label != label:
            self.pause.label = label
        if len(points) != self._drawn:
            self._drawn = len(points)
            self.curve.content = curve(points)
