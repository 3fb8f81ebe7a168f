from __future__ import annotations

import pytest

from pabzip.errors import RecipeError
from pabzip.train.cost import estimate_costs
from pabzip.train.recipes import read_recipe


def estimate(**search):
    return estimate_costs(
        read_recipe(None, {"arch": "lenet-300-100", "search": {"iterations": 3, **search}})
    )


def test_the_recipes_scope_decides_what_each_layer_keeps():
    for scope, even in (("layer", True), ("global", False)):
        kept = [layer.kept for layer in estimate(scope=scope).layers["pab-bop"]]
        assert (kept == pytest.approx([0.1] * 3, abs=1e-3)) == even


def test_another_search_is_refused():
    with pytest.raises(RecipeError, match=r"search\.method: expected synflow, .*found 'snip'"):
        estimate(method="snip")
