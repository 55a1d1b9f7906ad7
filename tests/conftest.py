"""One thread for every test: small networks gain nothing from more, and thread counts change sums in the last digit."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def undrawn():
    """Figures are saved as the numbers and titles they show and not as pictures, here and in forked processes: drawing
    takes most of the time of a short run. Other contents are other bytes all the same.
    """
    from html import escape

    from matplotlib.figure import Figure

    from palimpsest.utils.log import page

    def save_contents(figure, file, format, **_):
        contents = []
        for axes in figure.axes:
            shown = [axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()]
            shown += [line.get_xydata().tolist() for line in axes.lines]
            shown += [patch.get_path().vertices.tolist() + [patch.get_window_extent().bounds] for patch in axes.patches]
            shown += [image.get_array().tolist() for image in axes.images]
            shown += [points.get_offsets().tolist() for points in axes.collections]
            contents.append(shown)
        text = repr(contents)
        file.write((f"<svg>{escape(text)}</svg>" if format == "svg" else text).encode())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save_contents)
        patch.setattr(page, "_extent", lambda figure: (0, 0, 1, 1))
        yield
