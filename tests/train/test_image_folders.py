"""A ticket of the caller's own image files, from folder to evaluation."""

from __future__ import annotations

import numpy as np
import pytest

from pabzip import data, load, pack
from pabzip.errors import DataError
from pabzip.ticket import Ticket
from pabzip.train import Recipe, SearchRecipe, evaluate, train

image_module = pytest.importorskip("PIL.Image")
pytest.importorskip("torchvision")


@pytest.fixture
def folder(tmp_path):
    """Dark and bright images of 10x8 pixels in true files."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 6)):
        for label, (low, high) in {"bright": (128, 256), "dark": (0, 128)}.items():
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(low, high, (8, 10, 3), dtype=np.uint8)
                image_module.fromarray(pixels).save(tmp_path / part / label / f"{i}.png")
    return tmp_path


def recipe(folder, **options) -> Recipe:
    return Recipe(
        arch="lenet-300-100", arch_options={"width": 30}, data="folder", data_root=str(folder),
        augment=True, epochs=3, batch_size=8, keep_ratio=0.5, device="cpu",
        search=SearchRecipe(iterations=2), **options,
    )  # fmt: skip


def test_from_folder_to_evaluation(folder):
    result = train(recipe(folder), output=folder / "model.pt")
    assert (result.data, result.test_accuracy) == ("folder", 1.0)
    pack(folder / "model.pt", folder / "model.pabz")
    images = data.load("folder", root=folder).test
    found = evaluate(load(folder / "model.pabz"), images)
    assert (found.samples, found.accuracy, found.loss) == (12, 1.0, result.test_loss)


def test_a_ticket_does_not_tell_the_path_of_its_data(folder):
    by_path = recipe(folder).replace(data=str(folder), data_root=None)
    result = train(by_path, output=folder / "model.pt")
    assert result.data == str(folder)
    pack(folder / "model.pt", folder / "model.pabz")
    with Ticket.open(folder / "model.pabz") as ticket:
        assert ticket.metadata["data"] == "folder"
    assert str(folder).encode() not in (folder / "model.pabz").read_bytes()


def test_the_same_bits_again(folder):
    for name in ("a.pt", "b.pt"):
        train(recipe(folder), output=folder / name)
    packed = [pack(folder / name, folder / f"{name}.pabz")["sha256"] for name in ("a.pt", "b.pt")]
    assert packed[0] == packed[1]


def test_a_damaged_file_ends_the_training_and_is_named(folder):
    (folder / "train" / "dark" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3\.png: expected an image"):
        train(recipe(folder), output=folder / "model.pt")
    assert not (folder / "model.pt").exists()
