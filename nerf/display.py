"""What a training shows while it runs: a bar with its quality, its speed and the time left."""

from __future__ import annotations


class Display:
    """A progress bar with PSNR, rays/s and the time left; nothing where it is not wanted."""

    def __init__(self, shown: bool) -> None:
        self.bar = None
        if not shown:
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} {task.fields[words]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task("training", total=None, words="")
        self.bar.start()

    def update(self, step: int, total: int | None, psnr: float, rays_per_second: float) -> None:
        if self.bar is not None:
            words = f"PSNR {psnr:.1f} dB  {rays_per_second / 1e3:.0f} k rays/s"
            self.bar.update(self.task, completed=step, total=total, words=words)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
