"""A flip cost in the recipe reaches Bop, and the file is smaller for it."""

import pabzip
from pabzip.train import default_recipe, train


def test_a_flip_cost_makes_a_smaller_file(tmp_path):
    recipe = default_recipe("lenet-300-100")
    results, sizes = [], []
    for flip_cost in (0.0, 1e-4, 1e-3):
        bop = recipe.bop.replace(start="zero", flip_cost=flip_cost)
        found = train(recipe.replace(epochs=2, device="cpu", bop=bop), output=tmp_path / "m.pt")
        results.append(found)
        sizes.append(pabzip.pack(tmp_path / "m.pt", tmp_path / "m.pabz")["codes_bytes"])
    flipped = [found.flipped for found in results]
    assert flipped == sorted(flipped, reverse=True)
    assert flipped[2] < 0.3 * flipped[0]
    assert sizes == sorted(sizes, reverse=True)
    assert results[1].test_accuracy > 0.7
