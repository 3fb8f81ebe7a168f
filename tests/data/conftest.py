"""A local web server, and small images in true files."""

from __future__ import annotations

import functools
import http.server
import threading
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a local web server that serves ``tmp_path``."""
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    handler = functools.partial(QuietHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, *_):
        pass


@pytest.fixture
def write_image():
    """A function that writes an image of one color, by its suffix, and its folders."""
    from PIL import Image

    def write(path: Path, color: int | tuple[int, int, int], size: tuple[int, int] = (8, 8)):
        mode = "L" if isinstance(color, int) else "RGB"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, color).save(path)

    return write


@pytest.fixture
def write_noise():
    """A function that writes an image without loss, and returns its pixels ``[3, H, W]``."""
    from PIL import Image

    def write(path: Path, seed: int, width: int, height: int) -> np.ndarray:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return pixels.transpose(2, 0, 1)

    return write
