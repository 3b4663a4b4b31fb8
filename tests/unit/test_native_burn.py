# SPDX-License-Identifier: GPL-2.0-only
"""Constants that are burnt into functions, and what is left alone."""

import ast
from pathlib import Path

import pytest
from burning import Tree, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from native.burn import literal
from native.problem import BuildProblem
from pyhv.lane import HOT, PACKAGE


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path)
    made.write(
        "pyhv.numbers",
        "import enum\n"
        "SHIFT = 12\n"
        "SIZE: int = 1 << SHIFT\n"
        "A, B, C = range(3)\n"
        "TABLE = tuple(SIZE * n for n in range(4))\n"
        "WORDS = {0xE030: 0x00AF_FB00_0000_FFFF}\n"
        "NAME = 'text'\n"
        "YES = True\n"
        "HALF = 0.5\n"
        "MADE = len(NAME)\n"
        "TWICE = 1\nTWICE = 2\n"
        "MAYBE = 1\nif MADE:\n    MAYBE = 2\n"
        "GROWS = 1\nGROWS += 1\n"
        "SET = 1\ndef change():\n    global SET\n    SET = 2\n"
        "LOOP = LOOP2\nLOOP2 = LOOP\n"
        "class Kind(enum.IntEnum):\n    ONE = 1\n    TWO = ONE + 1\n    def also(self): return 3\n"
        "class Plain(enum.Enum):\n    ONE = 1\n",
    )
    return made


def body(tree: Tree, expression: str, head: str = "from pyhv import numbers as n\n") -> str:
    """What an expression of a function becomes."""
    lines = tree.burnt(f"{head}def f(x):\n    return {expression}\n").splitlines()
    return lines[-1].removeprefix("    return ")


@pytest.mark.parametrize(
    ("expression", "becomes"),
    [
        ("n.SHIFT", "12"),
        ("x[n.SIZE]", "x[4096]"),
        ("n.SIZE - 1", "4095"),
        ("x & ~n.SIZE", "x & (-4097)"),
        ("n.C", "2"),
        ("n.TABLE[n.B]", "4096"),
        ("n.TABLE[x]", "n.TABLE[x]"),
        ("n.WORDS[0xE030] >> 32", "11533056"),
        ("x == n.Kind.ONE", "x == 1"),
        ("x in (1, 2) and n.Kind.TWO < x", "x in (1, 2) and 2 < x"),
        ("x[n.Kind.ONE] | n.Kind.TWO", "x[1] | 2"),
        ("-n.Kind.TWO", "(-2)"),
        ("f(x, key=n.B)", "f(x, key=1)"),
        ("1 << 40", "cython.cast(cython.longlong, 0x10000000000)"),
        ("n.SIZE << 51", "cython.cast(cython.ulonglong, 0x8000000000000000)"),
    ],
)
def test_a_constant_is_written_in(tree: Tree, expression: str, becomes: str) -> None:
    assert body(tree, expression) == becomes


@pytest.mark.parametrize(
    "expression",
    [
        "n.Kind.TWO",  # whoever gets it may ask for its name
        "f(n.Kind.TWO, x)",
        "(n.Kind.ONE, x)",
        "x is n.Kind.ONE",  # asks for the object
        "x is not n.Kind.ONE",
        "n.SIZE << 52",  # 1 << 64, in no machine word, nor its parts
        "(n.SIZE << 52) - 1 + (1 << 64)",
        "f'{n.SIZE} {n.SIZE:#x}'",
        "n.NAME",
        "n.YES",
        "n.HALF",
        "n.MADE",
        "n.TWICE",
        "n.MAYBE",
        "n.GROWS",
        "n.SET",
        "n.LOOP",
        "n.Kind",
        "n.Kind.also",
        "n.Plain.ONE",
        "n.Kind(1)",
        "n.MISSING",
        "n.TABLE[9]",
        "1 << n.SIZE",  # longer than any word
        "1 // n.A",
        "missing.SIZE",
    ],
)
def test_what_is_no_number_of_a_word_is_left_alone(tree: Tree, expression: str) -> None:
    assert body(tree, expression) == expression


@pytest.mark.parametrize(
    "function",
    [
        "def f(SIZE): return SIZE",
        "def f(*SIZE): return SIZE",
        "def f(*, SIZE): return SIZE",
        "def f(x):\n    SIZE = x\n    return SIZE",
        "def f(x):\n    for SIZE in x: g(SIZE)",
        "def f(x):\n    with x as SIZE: g(SIZE)",
        "def f(x):\n    try: g()\n    except E as SIZE: g(SIZE)",
        "def f(x):\n    import SIZE\n    return SIZE",
        "def f(x):\n    if (SIZE := x): return SIZE",
        "def f(x):\n    return [SIZE for SIZE in x]",
        "def f(x):\n    return lambda SIZE: SIZE",
        "def f(x):\n    def SIZE(): return 1\n    return SIZE",
        "def f(x):\n    match x:\n        case [SIZE]: return SIZE",
        "def f(x):\n    match x:\n        case {'a': 1, **SIZE}: return SIZE",
        "def f(x):\n    SIZE = 1\n    def inner():\n        return SIZE",
        "def f(x, y=SIZE): return y",
        "@g(SIZE)\ndef f(x): return x",
        "def f(x: SIZE): return x",
        "def f(x):\n    y: SIZE = x",
        "def f(x):\n    match x:\n        case n.SIZE: return x",
        "class A:\n    SIZE = SIZE",
        "y = SIZE",
    ],
)
def test_names_that_are_bound_nearer_and_what_is_done_at_import(tree: Tree, function: str) -> None:
    text = f"from pyhv.numbers import SIZE\nfrom pyhv import numbers as n\n{function}\n"
    assert tree.burnt(text) == text


def test_methods_see_the_modules_names_and_not_their_class(tree: Tree) -> None:
    text = "from pyhv.numbers import SIZE\nclass A:\n    SIZE = 3\n    def f(self): return SIZE\n"
    assert tree.burnt(text).endswith("def f(self): return 4096\n")


def test_expressions_of_several_lines_are_left_alone(tree: Tree) -> None:
    text = "from pyhv.numbers import A, B\ndef f():\n    return (A |\n        B)\n"
    assert tree.burnt(text) == text


def test_a_name_of_the_module_itself_and_one_that_is_passed_on(tree: Tree) -> None:
    tree.write("pyhv.between", "from pyhv.numbers import SIZE as PAGE\n")
    text = "from pyhv.between import PAGE as P\n_HALF = P // 2\ndef f(): return P, _HALF\n"
    assert tree.burnt(text).endswith("def f(): return 4096, 2048\n")


def test_the_functions_of_words_come_from_the_pxd(tree: Tree) -> None:
    text = "from pyhv.cpu.words import (\n    octets,\n    store,\n)\ndef f(): pass\n"
    assert tree.burnt(text) == "pass\n\n\n\ndef f(): pass\n"


def test_columns_are_bytes_and_not_characters(tree: Tree) -> None:
    assert body(tree, "'ä€', n.SIZE") == "'ä€', 4096"


def test_a_module_begins_with_a_comment(tree: Tree) -> None:
    from native.burn import burnt
    from native.constants import Constants

    with pytest.raises(BuildProblem, match="begin with a comment"):
        burnt("x = 1\n", "pyhv.numbers", Constants(tree.root))


def test_files_that_gave_a_constant_are_known(tree: Tree) -> None:
    from native.burn import burnt
    from native.constants import Constants

    tree.write("pyhv.other", "X = 1\n")
    constants = Constants(tree.root)
    burnt(
        "#\nfrom pyhv.numbers import SIZE\nfrom pyhv.other import X\ndef f(X): return SIZE, X\n",
        "pyhv.hot",
        constants,
    )
    assert constants.used == set()  # the module itself is no file
    text = "from pyhv.numbers import SIZE\nfrom pyhv.other import X\ndef f(X): return SIZE, X\n"
    tree.write("pyhv.hot", text)
    constants = Constants(tree.root)
    burnt("#\n" + text, "pyhv.hot", constants)
    assert {file.name for file in constants.used} == {"numbers.py", "hot.py"}


@pytest.mark.parametrize("module", HOT)
def test_no_line_of_a_hot_module_moves(module: str) -> None:
    """So tracebacks and profiles name the lines of the sources."""
    from native.burn import burnt
    from native.constants import Constants

    source = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    found = burnt(source, module, Constants(PACKAGE.parent))

    def places(text: str) -> list[tuple[str, int]]:
        tree = ast.parse(text)
        return [
            (type(node).__name__, node.lineno)
            for node in ast.walk(tree)
            if isinstance(node, ast.stmt) and not isinstance(node, ast.Import | ast.ImportFrom | ast.Pass)
        ]

    assert places(found) == places(source)
    assert len(found.split("\n")) == len(source.split("\n"))


NAMES = ("A", "B", "BIG", "WORD", "x")
LEAVES = st.sampled_from(NAMES) | st.integers(0, 1 << 65).map(str)
EXPRESSIONS = st.recursive(
    LEAVES,
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-*&|^"), inner).map(lambda three: f"({' '.join(three)})")
        | st.tuples(inner, st.sampled_from(("<<", ">>")), st.integers(0, 70).map(str)).map(
            lambda three: f"({' '.join(three)})"
        )
        | inner.map(lambda one: f"(~{one})")
        | inner.map(lambda one: f"(-{one})")
    ),
    max_leaves=8,
)


@given(EXPRESSIONS, st.integers(-5, 1 << 64))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_burnt_or_not_it_is_the_same_number(tree: Tree, expression: str, x: int) -> None:
    text = f"A = 3\nB = 1 << 33\nBIG = (1 << 64) - 1\nWORD = BIG + 1\ndef f(x): return {expression}\n"
    found = tree.burnt(text)
    assert run(found)["f"](x) == run(text)["f"](x)


@given(st.integers(-(1 << 63), (1 << 64) - 1))
def test_a_literal_has_the_type_that_holds_it(value: int) -> None:
    text = literal(value)
    assert eval(text, run("")) == value
    kind = "int" if -(1 << 31) <= value < 1 << 31 else "longlong" if value < 1 << 63 else "ulonglong"
    assert ("cython.cast" not in text) if kind == "int" else (f"cython.{kind}," in text)
