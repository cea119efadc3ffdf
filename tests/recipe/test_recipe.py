"""Recipes: data in and out without a change, and every mistake of one at once with what was meant."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import table
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from featherweight.budget.amc import Search
from featherweight.budget.units import AllocateBy, Stopping
from featherweight.errors import InputError, RecipeError
from featherweight.recipe.patterns import matches
from featherweight.recipe.plan import resolve
from featherweight.recipe.reading import from_dict, read, to_yaml
from featherweight.recipe.schema import Constrain, CutUnits, DropBlocks, Layerwise, LearnUnits, Recipe, Rule, Stage, Train
from featherweight.recipe.units import Adaptive, Blocks, Criterion, Runtime, Units
from featherweight.training.schedule import Distillation, Training
from featherweight.weights.drivers import ADMM, Periodic, StraightThrough
from featherweight.weights.freezing import Freezing
from featherweight.weights.layerwise import Method
from featherweight.weights.sets import Codebook, Levels, LowRank, SparseCodebook, TopEach, TopK, TopRows
from featherweight.weights.views import View

BUDGETS = ("macs", "parameters", "bytes", "latency_ms")

# --- made recipes --------------------------------------------------------------------------------------------------------

maybe_size = st.none() | st.integers(0, 10**9)
share = st.floats(1e-6, 1.0)
positive = st.floats(1e-6, 1e6)
word = st.text(min_size=1, max_size=12)
a_set = st.one_of(
    st.builds(TopK, count=maybe_size),
    st.builds(TopEach, count=maybe_size),
    st.builds(TopRows, count=maybe_size),
    st.builds(LowRank, rank=maybe_size),
    st.builds(LowRank, energy=st.floats(0, 0.99)),
    st.builds(Levels, levels=st.sampled_from(["binary", "ternary"])),
    st.builds(Levels, levels=st.sampled_from(["uniform", "power_of_two"]), bits=st.none() | st.integers(1, 5)),
    st.builds(Codebook, count=maybe_size),
    st.builds(SparseCodebook, count=maybe_size, shared=st.integers(1, 300)),
)
a_view = st.sampled_from([View(seen.pattern, seen.given) for seen in table.VIEWS.values()])
a_rule = st.builds(
    Rule,
    targets=word,
    set=a_set,
    view=a_view | st.sampled_from(["rows", "channel", "spatial"]),
    keep=st.none() | share,
    ignore=st.lists(word, max_size=2).map(tuple),
)
a_driver = st.one_of(
    st.builds(Periodic, every=st.integers(1, 1000), shrink=st.floats(0, 10)),
    st.builds(StraightThrough, every=st.integers(1, 1000)),
    st.builds(Freezing, every=st.integers(1, 1000), share=share),
    st.builds(
        ADMM, rho=st.floats(1e-6, 1), every=st.integers(1, 1000), growth=st.floats(1, 5), rho_max=st.none() | st.floats(1, 9)
    ),
)
a_distillation = st.builds(
    Distillation,
    weight=share,
    temperature=positive,
    loss=st.floats(0, 2),
    distance=st.sampled_from(["kl", "mse"]),
    auto=st.booleans(),
)
a_training = st.builds(
    Training,
    epochs=st.integers(0, 500),
    rate=positive,
    shape=st.sampled_from(["constant", "cosine"]),
    floor=st.floats(0, 1),
    warmup=st.floats(0, 0.99),
)
a_budget = st.none() | st.tuples(st.sampled_from(["keep", "macs"]), share)  # one of the two, or neither
a_stage = st.builds(
    lambda budget, **others: Constrain(**others, **({budget[0]: budget[1]} if budget else {})),
    a_budget,
    name=word,
    rules=st.lists(a_rule, min_size=1, max_size=3).map(tuple),
    allocate=st.sampled_from(sorted(table.ALLOCATORS)),
    driver=st.none() | a_driver,
    train=a_training,
    retrain=a_training,
    masked=st.booleans(),
    fisher=st.floats(0, 2),
    sweep=st.booleans(),
    distill=st.none() | a_distillation,
)
a_layerwise = st.builds(
    lambda one, layerwise, retrain: Constrain("fitted", (Rule("*", one),), retrain=retrain, layerwise=layerwise),
    st.builds(TopK, count=maybe_size) | st.builds(TopEach, count=maybe_size),
    st.builds(
        Layerwise, method=st.sampled_from([name for name in get_args(Method) if name != "svd"]), samples=st.integers(1, 9999)
    ),
    a_training,
)
units = st.builds(
    lambda budget, amount, allocate, criterion, certify, runtime, **others: Units(
        criterion,
        **{budget: amount},
        allocate="ranked" if budget == "latency_ms" else allocate,
        certify=certify and criterion == "collaborative",
        runtime=runtime if budget == "latency_ms" else "eager",
        **others,
    ),
    st.sampled_from(BUDGETS),
    amount=share,
    multiple=st.integers(1, 32) | st.just("auto"),
    soft=st.booleans(),
    criterion=st.sampled_from(get_args(Criterion)),
    allocate=st.sampled_from(get_args(AllocateBy)) | st.builds(Stopping, st.floats(0.001, 0.999)) | st.just(Search(9, 2)),
    sites=word,
    samples=st.integers(1, 9999),
    refit=st.booleans(),
    certify=st.booleans(),
    runtime=st.sampled_from(get_args(Runtime)),
    ignore=st.lists(word, max_size=2).map(tuple),
)
a_cut = st.builds(CutUnits, name=word, units=units, train=a_training, auxiliary=st.booleans())
a_drop = st.builds(
    DropBlocks,
    name=word,
    blocks=st.builds(Blocks, macs=share, blocks=word, samples=st.integers(1, 9999)) | st.builds(Blocks, parameters=share),
    train=a_training,
    distill=st.none() | a_distillation,
)
learned = st.builds(Adaptive, parameters=share, weight=positive, rate=positive)
a_learned = st.builds(LearnUnits, name=word, adaptive=learned, train=a_training.filter(lambda training: training.epochs > 0))
a_plain = st.builds(Train, name=word, train=a_training, distill=st.none() | a_distillation)
a_recipe = st.builds(
    Recipe,
    name=word,
    stages=st.lists(
        a_plain | a_stage | a_cut | a_drop | a_learned | a_layerwise, min_size=1, max_size=3, unique_by=lambda stage: stage.name
    ).map(tuple),
    source=st.text(max_size=12),
    candidates=st.integers(1, 5),
)
MANY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


@given(a_recipe)
@MANY
def test_a_recipe_comes_back_from_its_data(recipe: Recipe) -> None:
    data = recipe.to_dict()
    assert from_dict(data) == recipe
    assert from_dict(data).to_dict() == data
    assert hash(from_dict(data)) == hash(recipe)


@given(recipe=a_recipe)
@MANY
def test_a_recipe_comes_back_from_files(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    (tmp_path / "recipe.yml").write_text(to_yaml(recipe))
    for name in ("recipe.json", "recipe.yaml", "recipe.yml"):
        assert read(tmp_path / name) == recipe


@pytest.mark.parametrize("name", table.RECIPES)
def test_every_recipe_of_the_table_comes_back_and_fits_its_networks(name: str) -> None:
    make, networks = table.RECIPES[name]
    recipe = make()
    assert from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    for network in networks:
        constraints = [stage for stage in recipe.stages if isinstance(stage, Constrain)]
        assert all(resolve(stage, table.NETWORKS[network][1]()).targets for stage in constraints)


def test_every_field_survives() -> None:
    """Hypothesis draws them; this asserts that no field of a description is left out of the drawing."""
    for kind, named in (
        (Training, {"epochs", "rate", "shape", "floor", "warmup"}),
        (Distillation, {"weight", "temperature", "loss", "distance", "auto"}),
        (Rule, {"targets", "set", "view", "keep", "ignore"}),
        (
            Units,
            {
                "criterion",
                *BUDGETS,
                "allocate",
                "sites",
                "samples",
                "refit",
                "curvature",
                "multiple",
                "certify",
                "ignore",
                "soft",
                "where",
                "runtime",
            },
        ),
        (Layerwise, {"method", "samples"}),
        (Blocks, {"macs", "parameters", "blocks", "samples"}),
        (Adaptive, {"parameters", "weight", "rate"}),
        (Recipe, {"name", "stages", "source", "candidates"}),
    ):
        assert {field.name for field in fields(kind)} == named
    rules, distill = (Rule("*", TopK()),), Distillation(0.25)
    stage = Constrain("all", rules, 0.5, None, "uniform", ADMM(1.0, 2), Training(1), Training(2), False, distill=distill)
    data = stage_data(stage)
    assert set(data) == {field.name for field in fields(Constrain)} and next(iter(data)) == "kind"
    assert from_dict({"name": "r", "stages": [data]}).stages == (stage,)


def test_the_rate_follows_its_shape() -> None:
    constant, cosine = Training(1, 2.0, "constant"), Training(1, 2.0, "cosine", floor=0.25)
    shares = [step / 100 for step in range(100)]
    assert {constant.factor(done) for done in shares} == {2.0}
    for done in shares:
        assert cosine.factor(done) == pytest.approx(2.0 * (0.625 + 0.375 * math.cos(math.pi * done)))
    rising = [Training(1, 2.0, "constant", warmup=0.2).factor(done) for done in shares]
    assert rising[0] == pytest.approx(0.1)
    assert rising[:20] == sorted(rising[:20])
    assert set(rising[20:]) == {2.0}


def stage_data(stage: Stage) -> dict[str, Any]:
    return Recipe("r", (stage,)).to_dict()["stages"][0]


def test_a_view_may_be_given_as_its_pattern() -> None:
    rule = {"targets": "*", "set": {"kind": "top_rows", "count": 3}, "view": "o i h w -> o (i h w)"}
    recipe = from_dict({"name": "r", "stages": [{"name": "s", "rules": [rule]}]})
    assert recipe.stages[0].rules[0] == Rule("*", TopRows(3), View("o i h w -> o (i h w)"))


# --- mistakes ------------------------------------------------------------------------------------------------------------


def test_all_mistakes_are_in_one_error_with_what_was_meant() -> None:
    data = {
        "name": "r",
        "candidates": 0,
        "sauce": "a paper",
        "stages": [
            {"name": "a", "rulez": [], "train": {"epochs": -1, "rat": 2.0}},
            {"name": "b", "keep": 1.5, "rules": [{"targets": "*", "set": {"kind": "top_k", "cuont": 1}, "keeep": 0.5}]},
            {"name": "c", "rules": [{"targets": "*", "set": {"kind": "topk"}}, {"set": {"kind": "top_k"}}]},
            {"name": "d", "driver": {"kind": "admm", "rho": "much", "every": 3}, "masked": "perhaps"},
            {"name": "e", "rules": [{"targets": "*", "set": {"kind": "low_rank", "rank": 2}, "view": "o i -> o"}]},
        ],
    }
    with pytest.raises(RecipeError) as caught:
        from_dict(data)
    text = str(caught.value)
    for expected in (
        "sauce: there is no key 'sauce'. Did you mean 'source'?",
        "stages.0.rulez: there is no key 'rulez'. Did you mean 'rules'?",
        "stages.0.train.rat: there is no key 'rat'. Did you mean 'rate'?",
        "there is no key 'cuont'. Did you mean 'count'?",
        "there is no key 'keeep'. Did you mean 'keep'?",
        "'topk'",
        "stages.2.rules.1.targets: is required",
        "(given 'much')",
        "(given 'perhaps')",
        "must give a matrix: two groups on the right, it has 1",
    ):
        assert expected in text
    assert len(caught.value.mistakes) >= 10
    assert text.startswith(f"{len(caught.value.mistakes)} mistakes in the recipe:")


UNKNOWN_KEYS = {
    "recipe": lambda data: data,
    "stage": lambda data: data["stages"][0],
    "training": lambda data: data["stages"][0]["train"],
    "distillation": lambda data: data["stages"][0]["distill"],
    "units": lambda data: data["stages"][1]["units"],
    "adaptive": lambda data: data["stages"][2]["adaptive"],
    "driver": lambda data: data["stages"][0]["driver"],
    "rule": lambda data: data["stages"][0]["rules"][0],
    "set": lambda data: data["stages"][0]["rules"][0]["set"],
    "view": lambda data: data["stages"][0]["rules"][0]["view"],
}


@pytest.mark.parametrize("place", UNKNOWN_KEYS)
def test_an_unknown_key_is_refused_at_every_depth(place: str) -> None:
    stage = Constrain("a", (Rule("*", TopK(3)),), driver=ADMM(1.0, 2), distill=Distillation())
    last = LearnUnits("c", adaptive=Adaptive(0.5), train=Training(1))
    data = Recipe("r", (stage, CutUnits("b", units=Units("l1", macs=0.5)), last)).to_dict()
    UNKNOWN_KEYS[place](data)["surprise"] = 1
    with pytest.raises(RecipeError, match="there is no key 'surprise'"):
        from_dict(data)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: Training(-1),
        lambda: Training(1, 0.0),
        lambda: Training(1, float("nan")),
        lambda: Distillation(0.0),
        lambda: Distillation(1.5),
        lambda: Distillation(0.5, 0.0),
        lambda: Distillation(0.5, loss=-1.0),
        lambda: Rule("*", TopK(), keep=0.0),
        lambda: Rule("*", TopK(), keep=1.01),
        lambda: Rule("*", TopK(), keep=float("nan")),
        lambda: Constrain("a", (Rule("*", TopK()),), keep=0.0),
        lambda: Constrain("a", (Rule("*", TopK()),), keep=2.0),
        lambda: Constrain("a", (Rule("*", TopK()),), allocate="lmap"),
        lambda: Constrain("a", (), driver=ADMM(1.0, 1)),
        lambda: Constrain("a", (), keep=0.5),
        lambda: LearnUnits("a", Adaptive(0.5), Training(0)),
        lambda: Train("a", auxiliary=True),
        lambda: Recipe("r", ()),
        lambda: Recipe("r", (Train("a"), Train("a"))),
        lambda: Recipe("r", (Train("a"),), candidates=0),
    ],
)
def test_values_that_mean_nothing_are_refused(attempt: Any) -> None:
    with pytest.raises(InputError):
        attempt()


INFINITE = float("inf")


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: Training(1, INFINITE),
        lambda: Distillation(0.5, INFINITE),
        lambda: ADMM(INFINITE, 1),
        lambda: ADMM(1.0, 1, INFINITE),
        lambda: Periodic(1, INFINITE),
    ],
    ids=["rate", "temperature", "rho", "growth", "shrink"],
)
def test_numbers_without_end_are_refused_since_json_has_none(attempt: Any) -> None:
    with pytest.raises(InputError):
        attempt()


def test_a_misspelt_allocator_is_told_what_was_meant() -> None:
    with pytest.raises(InputError, match="Did you mean 'magnitude'"):
        Constrain("a", (Rule("*", TopK()),), allocate="magnitud")


NOT_RECIPES = {
    "not JSON": ("recipe.json", b"{"),
    "not YAML": ("recipe.yaml", b"a: [1"),
    "a list": ("recipe.yaml", b"- 1\n- 2\n"),
    "nothing": ("recipe.yaml", b""),
    "a word": ("recipe.json", b'"word"'),
    "not text": ("recipe.yaml", b"\xff\xfe\x00\x80"),
    "not text in JSON": ("recipe.json", b"\x80\x81"),
    "an object of Python": ("recipe.yaml", b"!!python/object/apply:os.system ['true']"),
    "deep JSON": ("recipe.json", b"[" * 100_000),
    "deep YAML": ("recipe.yaml", b"[" * 1_500),
    "deep closed YAML": ("recipe.yaml", b"[" * 40 + b"]" * 40),
    "an alias": ("recipe.yaml", b"a: &x [1]\nb: *x\n"),
    "aliases of aliases": (
        "recipe.yaml",
        b"a: &a [x,x]\n" + b"".join(b"%c: &%c [*%c,*%c]\n" % (i + 1, i + 1, i, i) for i in range(97, 120)),
    ),
    "a merge key": ("recipe.yaml", b"a: {b: 1}\n<<: {name: r}\n"),
    "a key twice": ("recipe.yaml", b"name: a\nname: b\n"),
    "a key twice in JSON": ("recipe.json", b'{"name": "a", "name": "b"}'),
    "many values": ("recipe.yaml", b"[" + b"1," * 25_000 + b"]"),
    "many values in JSON": ("recipe.json", b"[" + b"1," * 25_000 + b"1]"),
    "a large file": ("recipe.json", b'"' + b"a" * 2**19 + b'"'),
    "a large number": ("recipe.json", b"[1" + b"0" * 30 + b"]"),
    "a large number in YAML": ("recipe.yaml", b"- 0x" + b"f" * 100_000),
    "a number by sixties": ("recipe.yaml", b"- 1" + b":1" * 50_000),
}


@pytest.mark.third
@pytest.mark.parametrize(("name", "content"), NOT_RECIPES.values(), ids=NOT_RECIPES)
def test_a_file_that_is_no_recipe_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    start = time.process_time()
    with pytest.raises(InputError) as caught:
        read(tmp_path / name)
    assert "the recipe" in str(caught.value) and len(str(caught.value)) < 1000
    assert time.process_time() - start < 2.0


HUGE = {
    "epochs": lambda d: d["stages"][0].update(train={"epochs": 10**12}),
    "candidates": lambda d: d.update(candidates=10**9),
    "keep": lambda d: d["stages"][0].update(keep=float("nan")),
    "rate": lambda d: d["stages"][0].update(train={"epochs": 1, "rate": float("inf")}),
    "stages": lambda d: d.update(stages=[d["stages"][0] | {"name": str(n)} for n in range(1001)]),
    "a name": lambda d: d["stages"][0].update(allocate="a" * 10**6),
    "a key": lambda d: d.update({"k" * 10**6: 1}),
    "wrong rules": lambda d: d["stages"][0].update(rules=[3] * 10_000),
}


@pytest.mark.parametrize("change", HUGE.values(), ids=HUGE)
def test_what_no_run_could_do_is_refused_at_once_and_in_short(change: Any) -> None:
    data = Recipe("r", (Constrain("a", (Rule("*", TopK(3)),)),)).to_dict()
    change(data)
    with pytest.raises(RecipeError) as caught:
        from_dict(data)
    assert len(caught.value.mistakes) <= 51 and all(len(mistake) < 1200 for mistake in caught.value.mistakes)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the recipe"):
        read(tmp_path / "none.yaml")


# --- plans ---------------------------------------------------------------------------------------------------------------


def test_names_are_matched_by_glob_and_by_whole_regular_expression() -> None:
    assert matches("*.weight", "fc1.weight")
    assert not matches("*.weight", "fc1.bias")
    assert matches("fc[12].*", "fc2.bias")
    assert not matches("FC1.weight", "fc1.weight")
    assert matches(r"re:fc\d\.weight", "fc1.weight")
    assert not matches(r"re:fc\d", "fc1.weight")


PATTERNS = (  # as re understands them
    *(r"(?!conv1\.).*conv\d+\.weight", r"conv[1-3]\.(weight|bias)", r"\w+\.\d+\..*", r".+?1\.w.*", r"(fc|conv)\d{1,2}\.weight"),
    *(r"^[^.]+\.weight$", r"(?:\bconv|fc).*", r"(a|b)*|conv2\.bias", r"(?=.*2)conv.*", r"\D+\d{0}.*", "", r"con\S{2}\.\w*t"),
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_regular_expression_means_what_it_means_to_python(pattern: str) -> None:
    names = [
        "conv1.weight",
        "conv2.bias",
        "fc1.weight",
        "fc12.weight",
        "a.3.b",
        "",
        "aab",
        "conv2.weight\n",
        "layer1.0.conv1.weight",
    ]
    assert [matches(f"re:{pattern}", name) for name in names] == [re.fullmatch(pattern, name) is not None for name in names]


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|a)*b", "(.*)*x", "(?=(a+)+b)*x", ".*" * 80 + "x", "(a?){90}b", "(?:(?:a*)*)*b"]
)
def test_no_regular_expression_takes_long(pattern: str) -> None:
    start = time.process_time()
    assert not matches(f"re:{pattern}", "a" * 100 + "c")
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
    "pattern", ["a{1,99999}", "(?:a{90}){90}", r"(a)\1", "(?<=a)b", "(?i)a", "(?i:a)", "[", "(" * 200, "a" * 300]
)
def test_a_regular_expression_without_a_bound_is_refused(pattern: str) -> None:
    with pytest.raises(InputError) as caught:
        matches(f"re:{pattern}", "a")
    assert len(str(caught.value)) < 300


def test_a_plan_gives_every_target_its_size() -> None:
    stage = Constrain(
        "s",
        (
            Rule("hidden.weight", TopK()),
            Rule("out.weight", TopK(), keep=0.25),
            Rule("conv.weight", TopRows(2), View("o i h w -> o (i h w)")),
        ),
        keep=0.1,
    )
    plan = resolve(stage, table.toy())
    assert plan.targets["hidden.weight"].set == TopK(round(0.1 * 12 * 96))
    assert plan.targets["out.weight"].set == TopK(12)
    assert plan.targets["conv.weight"].set == TopRows(2)
    assert plan.sizes == {"hidden.weight": (115, 1152), "out.weight": (12, 48)}
    assert [row[:2] for row in plan.rows()] == [("hidden.weight", "TopK"), ("out.weight", "TopK"), ("conv.weight", "TopRows")]


def test_a_budget_is_spent_whole_over_all_targets() -> None:
    for allocate in table.ALLOCATORS:
        stage = Constrain("s", (Rule("*.weight", TopK()),), keep=0.2, allocate=allocate)
        plan = resolve(stage, table.toy())
        assert sum(size for size, _ in plan.sizes.values()) == round(0.2 * (24 + 1152 + 48))


def test_ratios_are_of_the_original_network() -> None:
    original = {name: parameter.detach() for name, parameter in table.toy().named_parameters()}
    smaller = table.toy()
    smaller.hidden = nn.Linear(96, 6)
    stage = Constrain("s", (Rule("hidden.weight", TopK()),), keep=0.25)
    assert resolve(stage, smaller, original).targets["hidden.weight"].set == TopK(288)
    assert resolve(stage, smaller).targets["hidden.weight"].set == TopK(144)


def test_all_mistakes_of_a_plan_are_in_one_error() -> None:
    stage = Constrain(
        "s",
        (
            Rule("hiden.weight", TopK(1)),
            Rule("out.weight", TopK(1)),
            Rule("out.*", TopK(1)),
            Rule("conv.weight", TopK(1), View("o i -> o i")),
            Rule("conv.bias", Levels("binary"), keep=0.5),
            Rule("hidden.weight", Codebook()),
        ),
    )
    with pytest.raises(RecipeError) as caught:
        resolve(stage, table.toy())
    text = str(caught.value)
    assert "matches no parameter. Did you mean 'hidden.weight'?" in text
    assert "parameter 'out.weight' is already the target of an earlier rule" in text
    assert "is for 2 dimensions, the parameter has shape (6, 1, 2, 2)" in text
    assert "Codebook has no size for an allocator" in text
    assert len(caught.value.mistakes) >= 4


def test_a_rule_without_a_size_and_a_stage_without_a_budget_is_a_mistake() -> None:
    with pytest.raises(RecipeError, match=r"has no `keep`, and no size or `keep` is given for out\.weight"):
        resolve(Constrain("s", (Rule("out.weight", TopK()),)), table.toy())


BAD_RULES = {
    "a regular expression that is none": Rule("re:(", TopK(1)),
    "a size beyond the matrix": Rule("out.weight", TopK(49)),
    "a negative size": Rule("out.weight", TopK(-1)),
    "a rank beyond the matrix": Rule("out.weight", LowRank(5), View("o i -> o i")),
    "more shared values than entries": Rule("out.weight", Codebook(49)),
    "a size and a share": Rule("out.weight", TopK(5), keep=0.5),
}


@pytest.mark.parametrize("rule", BAD_RULES.values(), ids=BAD_RULES)
def test_a_plan_finds_the_mistake_before_anything_runs(rule: Rule) -> None:
    with pytest.raises(RecipeError):
        resolve(Constrain("s", (rule,)), table.toy())


def test_a_network_that_has_diverged_is_not_planned_on() -> None:
    network = table.toy()
    with torch.no_grad():
        network.out.weight[0, 0] = torch.nan
    with pytest.raises(RecipeError, match="NaN or infinite"):
        resolve(Constrain("s", (Rule("out.weight", TopK()),), keep=0.5), network)
