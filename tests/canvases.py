"""What tests of canvas patterns share: matrices as text, dense masks as lists, random canvases."""

from hypothesis import strategies as st


def table(text):
    """Rows of `x` and `.` as a matrix."""
    return [[mark == "x" for mark in line.split()] for line in text.strip().splitlines()]


def rows(mask, canvas, **values):
    return mask.dense(canvas.size, **values)[0, 0].tolist()


@st.composite
def canvases(draw):
    """A canvas of one to four axes, one of them the time."""
    names = draw(st.permutations(["t", "h", "w", "v"]))[: draw(st.integers(1, 4))]
    names = names if "t" in names else [*names[:-1], "t"]
    most = {1: 14, 2: 7, 3: 4, 4: 3}[len(names)]
    return {name: draw(st.integers(1, most)) for name in names}
