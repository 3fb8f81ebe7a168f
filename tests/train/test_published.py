from __future__ import annotations

import re
from itertools import product

import pytest

from pabzip import models
from pabzip.errors import RecipeError
from pabzip.train.recipes import find_recipe, published_recipes, read_recipe

PAB = ("pab-latent", "pab-latent-psg", "pab-bop", "pab-bop-psg")
SPARSE = ("sgd", "signsgd", *PAB)
ALL = ("dense-sgd", "dense-sgd-short", *SPARSE)
BITS = ((4, 4, 4), (4, 4, 8), (8, 8, 8), (8, 8, 16), (16, 16, 16), (16, 16, 32))
SCHEMES = ("kaiming_normal", "kaiming_uniform", "xavier_normal")


def recipe(name):
    return read_recipe(find_recipe(name))


def rows():
    """Every row of the paper's tables, by the name of its recipe."""
    yield from (f"table1-{arch}-{m}" for arch, m in product(("resnet18", "resnet50"), ALL))
    yield from (f"table2-{data}-{m}" for data, m in product(("cifar10", "cifar100"), ALL))
    yield from (f"table3-{s.replace('_', '-')}-{m}" for s, m in product(SCHEMES, SPARSE))
    yield from (f"table4-{shots}-shots-{m}" for shots, m in product((2, 3, 4, 5), SPARSE))
    yield from (f"table5-{'-'.join(map(str, bits))}" for bits in BITS)
    yield from ("imagenet-resnet50-keep-0.7", "imagenet-resnet50-keep-0.5")


def test_there_is_a_recipe_for_every_row_and_no_other():
    names = [found.name for found in published_recipes()]
    assert sorted(n for n in names if n.startswith(("table", "imagenet"))) == sorted(rows())


@pytest.mark.parametrize("name", sorted(rows()))
def test_a_recipe_says_what_it_repeats(name):
    about = {found.name: found.about for found in published_recipes()}[name]
    part = "ImageNet" if name.startswith("imagenet") else f"Table {name[5]}"
    assert about.startswith(f"Peek-a-Boo, {part}")
    assert re.search(r"The paper(: \d\d\.\d+ %| could not train it)", about)


@pytest.mark.parametrize("name", sorted(n for n in rows() if n.startswith("table")))
def test_cifar_recipes_follow_section_4_1(name):
    found = recipe(name)
    assert (found.epochs, found.search.method, found.search.rounds) == (200, "synflow", 100)
    assert (found.bop.adaptivity_rate, found.bop.threshold) == (1e-3, 1e-6)
    assert (found.bop.decay_every, found.bop.decay_ratio) == (45, 0.15)
    assert (found.sgd.lr, found.sgd.milestones, found.sgd.decay) == (0.1, (80, 120), 0.1)
    assert found.augment


@pytest.mark.parametrize(("arch", "method"), list(product(("resnet18", "resnet50"), ALL)))
def test_table_1(arch, method):
    found = recipe(f"table1-{arch}-{method}")
    assert (found.arch, found.data, found.method) == (arch, "cifar10", method)
    assert found.keep_ratio == 0.1


@pytest.mark.parametrize(("data", "method"), list(product(("cifar10", "cifar100"), ALL)))
def test_table_2(data, method):
    found = recipe(f"table2-{data}-{method}")
    assert (found.arch, found.data, found.method) == ("wideresnet28", data, method)
    assert found.keep_ratio == {"cifar10": 0.1, "cifar100": 0.3}[data]
    assert found.arch_options == {"published": True}


@pytest.mark.parametrize(("scheme", "method"), list(product(SCHEMES, SPARSE)))
def test_table_3(scheme, method):
    found = recipe(f"table3-{scheme.replace('_', '-')}-{method}")
    assert (found.arch, found.scheme, found.method) == ("resnet18", scheme, method)


@pytest.mark.parametrize(("shots", "method"), list(product((2, 3, 4, 5), SPARSE)))
def test_table_4(shots, method):
    found = recipe(f"table4-{shots}-shots-{method}")
    assert (found.search.shots, found.search.epoch, found.method) == (shots, 50, method)
    assert found.keep_ratio == 0.1


@pytest.mark.parametrize("bits", BITS)
def test_table_5(bits):
    psg = recipe(f"table5-{'-'.join(map(str, bits))}").psg
    assert (psg.input_bits, psg.weight_bits, psg.gradient_bits) == bits
    # The accuracies of the table are those of the published code.
    assert (psg.input_gradient, psg.quantizer) == ("exact", "published")


@pytest.mark.parametrize("keep_ratio", [0.7, 0.5])
def test_imagenet(keep_ratio):
    found = recipe(f"imagenet-resnet50-keep-{keep_ratio}")
    assert (found.arch, found.data, found.epochs) == ("resnet50-imagenet", "imagenet", 100)
    assert (found.keep_ratio, found.method) == (keep_ratio, PAB[-1])
    assert (found.bop.first_decay, found.bop.decay_every) == (29, 30)
    assert (found.sgd.milestones, found.sgd.momentum, found.batch_size) == ((30, 60, 90), 0.9, 256)
    net = models.build(found.arch, device="meta")
    unpruned = [n for n in dict(net.named_modules()) if n.endswith("downsample")]
    assert list(found.search.skip) == unpruned
    assert len(unpruned) == 4


def test_a_file_wins_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table5-4-4-4").write_text("epochs = 7\n")
    assert recipe("table5-4-4-4").epochs == 7


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match=r"found 'table5-4-4-5'; the nearest are .*table5-4-4-4"):
        find_recipe("table5-4-4-5")
