"""What a training or a fit shows while it runs: a bar with its quality and the time left."""

from __future__ import annotations

from nerf.views.progress import timed_bar


class Display:
    """A progress bar with words of its own and the time left; nothing where it is not wanted."""

    def __init__(self, shown: bool, label: str = "training") -> None:
        self.bar = None
        if not shown:
            return
        from rich.progress import TextColumn

        self.bar = timed_bar(TextColumn("{task.completed}/{task.total} {task.fields[words]}"))
        self.task = self.bar.add_task(label, total=None, words="")
        self.bar.start()

    def update(self, step: int, total: int | None, psnr: float, rays_per_second: float) -> None:
        self.show(step, total, f"PSNR {psnr:.1f} dB  {rays_per_second / 1e3:.0f} k rays/s")

    def show(self, step: int, total: int | None, words: str) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=step, total=total, words=words)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
