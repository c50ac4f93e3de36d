"""What is shown while something takes long: on standard error, and only where it is wanted."""

from __future__ import annotations

import pytest

from nerf.io.progress import Display, progress


def test_a_training_and_a_fit_share_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    training = Display(True)
    training.update(9, 100, 25.04, 12_300.0)
    training.close()
    fitting = Display(True, "fitting")
    fitting.show(8, 20, "error 1.00e-03")
    fitting.close()
    fitting.show(9, 20, "never seen")  # closed: nothing more is written
    out, shown = capsys.readouterr()
    first, second = shown.splitlines()
    assert out == ""
    assert first.startswith("training ") and "9/100 PSNR 25.0 dB  12 k rays/s" in first and "left" in first
    assert second.startswith("fitting ") and "8/20 error 1.00e-03" in second


def test_nothing_is_shown_that_is_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(False)
    display.update(1, 2, 3.0, 4.0)
    display.close()
    assert list(progress([1, 2], "views", show=False)) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_items_come_through_the_bar_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(3), "views")) == [0, 1, 2]
    assert "3/3" in capsys.readouterr().err
