"""The house's English: docstrings and tooltips are sentences, and functions are named by verbs."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("smra_core", "nodes") for path in (ROOT / folder).rglob("*.py"))
TEST_FILES = sorted((ROOT / "tests").rglob("*.py"))

FRAGMENTS = (
    "Of ", "Or ", "Or,", "Whose ", "From which", "Than ", "Which ", "That ", "And ", "But ", "Beside ",
    "Where it ", "As width", "How many", "How much", "How far",
)  # fmt: skip
"""Beginnings of texts that are no sentence by themselves."""

VERBS = frozenset(
    """
    accept accumulate add adjust align allocate analyze append apply assign average backpropagate
    backward balance begin bind blend bootstrap bring build cache calculate calibrate canonicalize cast
    center chain change check choose clamp clear clip close coarsen collate collect color combine compare
    complete compute concatenate configure convert convolve copy count cover crop cut debias decide declare
    decode default define delete denormalize describe detach detect determine dilate discard disable
    display divide download drain draw drop embed enable encode enlarge ensure enumerate erode escape estimate
    evaluate exchange execute expand explain export extend extract fetch fill filter find finish fingerprint
    fit fold follow forget format forward free freeze generate get give guess hash hide hold identify
    import include index init initialize inject insert inspect install interpolate invert iterate join
    keep leave let limit link list load lock log look lower main make map mark mask match matmul measure
    merge minimize mix move multiply name normalize note offload open order pack pad paint parse paste
    patch permute pick plan plot pool predict prefer prepare prepend preview print process prune publish
    put quantize raise ramp randomize rank read rebuild receive recolor record recompute reduce refine
    refuse register reject release reload remember remove rename render reorder repeat replace report
    request require resample rescale reset reshape resize resolve restore restrict resume return reverse
    rotate round run sample save say scale scan schedule score segment select send serve set share shift
    show shrink skip slice smooth soften sort split spoil spread stack start state stay step stop store stream
    strip subtract sum swap synchronize take tell test tile tidy tokenize trace track train transform
    translate transpose trim truncate try undo unload unpack unshift unwrap update upsample use validate vary
    verify wait walk warm warn weigh wrap write yield
    arrange correlate degrade gather grow recognize
    """.split()
)
"""First words of function names. Add a verb here when it is missing; never a noun."""

QUESTIONS = frozenset(
    """
    accepts are can differs does doubles fits has holds includes is loses may multiplies needs was wastes
    """.split()
)
"""First words of functions that answer a question with True or False."""

CONVERSIONS = frozenset("to from as with without at in on by for of".split())
"""First words of functions that return their input in another form: as_frames, from_step, to_file."""

CONTEXTS = frozenset(
    "recomputing replaced injected scheduled loaded locked training denoiser served opened averaged".split()
)
"""First words of context managers, which are named after the state inside the block."""

QUANTITIES = frozenset(
    """
    delta losses linears trainables velocity flow forward sura_loss region_loss temporal_loss
    flow_alignment_loss flow_weight velocity_target velocity_weight x0_from_velocity sampling_sigmas
    preservation_loss learning_rate_factor
    initial_noise guided_velocity euler_step heun_step latent_frames pixel_frames latent_shape
    token_grid linear_names linear_shape frames_of_latent boundary
    """.split()
)
"""Functions named after the quantity that they compute: the paper's losses and formulas, WAN's sizes."""


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Docstrings, also of attributes, and texts given as tooltip, description or explanation."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield node.lineno, node.value.value
        if isinstance(node, ast.keyword) and node.arg in ("tooltip", "description", "help"):
            yield node.value.lineno, first_text(node.value)
        if (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", "") == "declare_setting"
            and len(node.args) == 2
        ):
            yield node.lineno, first_text(node.args[1])


def first_text(node: ast.expr) -> str:
    """The constant that a text begins with; empty where it begins with a value."""
    if isinstance(node, ast.JoinedStr):
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def fragments(source: str) -> list[str]:
    return [
        f"line {line}: {text[:60]}" for line, text in texts(ast.parse(source)) if text.startswith(FRAGMENTS)
    ]


def is_property(node: ast.FunctionDef) -> bool:
    names = {getattr(each, "id", getattr(each, "attr", "")) for each in node.decorator_list}
    return bool(names & {"property", "cached_property"})


def functions_without_a_verb(source: str) -> list[str]:
    allowed = VERBS | QUESTIONS | CONVERSIONS | CONTEXTS
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("__") or is_property(node):
            continue
        name = node.name.lstrip("_")
        if name not in QUANTITIES and name.split("_")[0] not in allowed:
            found.append(f"line {node.lineno}: {node.name}")
    return found


@pytest.mark.parametrize("path", FILES + TEST_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_and_tooltips_are_no_fragments(path):
    assert not fragments(path.read_text("utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_named_by_verbs(path):
    assert not functions_without_a_verb(path.read_text("utf-8"))


def test_the_checks_see_a_fragment_and_a_noun():
    assert fragments('def f():\n    """Of one job."""\n')
    assert fragments('Input("x", tooltip="Of the file.")')
    assert fragments('x = 1\n"""Whose decoding is one graph."""\n')
    assert not fragments('def f():\n    """Return the bytes of one job."""\n')
    assert functions_without_a_verb("def masked(): pass") and functions_without_a_verb(
        "def _one_back(): pass"
    )
    assert not functions_without_a_verb("def load_file(): pass\ndef is_empty(): pass\ndef sura_loss(): pass")
