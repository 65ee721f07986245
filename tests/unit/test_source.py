"""The rules of the house, read off dockfix.py's syntax tree: imports, the one seam, the order of
the chapters, sizes, the floor of Python 3.6."""

import ast
import builtins
import collections
import os
import re
import symtable
import sys

import pytest

CHAPTERS = [  # a chapter uses itself and those above it
    "constants and errors",
    "text, sizes, times",
    "what a run knows and reports",
    "the host",
    "storage drivers",
    "docker",
    "choosing containers",
    "files of a container",
    "chpasswd",
    "exec",
    "time zones, clock",
    "timezone",
    "faketime",
    "the daemon's options",
    "docker's root: place, sizes, pool",
    "layer records",
    "layer owners and orphans",
    "which engine answers",
    "storage",
    "owner",
    "reclaim",
    "the change engine",
    "create recipes",
    "the daemon",
    "backup and restore",
    "pool",
    "relocate",
    "resume, rollback, discard",
    "output",
    "the command table",
    "main",
]
LATER = {  # what Python 3.6 does not have, by how it shows in a syntax tree
    "attributes": {
        "removeprefix",
        "removesuffix",
        "reconfigure",
        "is_relative_to",
        "fromisoformat",
        "time_ns",
        "perf_counter_ns",
        "pidfd_open",
        "waitstatus_to_exitcode",
        "copy_file_range",
        "memfd_create",
        "posix_spawn",
        "get_running_loop",
        "cancel_futures",
        "readlink_to",
        "batched",
        "pairwise",
        "bit_count",
        "randbytes",
        "isascii",
        "data_filter",
        "extraction_filter",
        "zoneinfo",
    },
    "keywords": {
        "capture_output",
        "missing_ok",
        "cancel_futures",
        "dirs_exist_ok",
        "process_group",
        "pipesize",
        "extra_groups",
        "exit_on_error",
    },
    "from shlex": {"join"},
    "from math": {"prod", "dist", "isqrt", "comb", "perm", "lcm"},
    "from contextlib": {"nullcontext", "chdir", "aclosing"},
    "from functools": {"cache", "cached_property"},
    "from typing": {"Literal", "TypedDict", "Final", "Protocol", "Annotated"},
}
LATER_MODULES = {
    "dataclasses",
    "contextvars",
    "importlib.resources",
    "importlib.metadata",
    "graphlib",
    "zoneinfo",
    "tomllib",
}
GONE_MODULES = {
    "crypt",
    "distutils",
    "imp",
    "asyncore",
    "asynchat",
    "cgi",
    "pipes",
    "telnetlib",
    "spwd",
    "nis",
    "smtpd",
    "audioop",
    "uu",
    "msilib",
}


@pytest.fixture(scope="module")
def source(dockfix):
    with open(dockfix.__file__, "rb") as f:
        return f.read()


@pytest.fixture(scope="module")
def tree(source):
    parsed = ast.parse(source)
    for node in ast.walk(parsed):
        for child in ast.iter_child_nodes(node):
            child.parent = node
    return parsed


@pytest.fixture(scope="module")
def chapters(source):
    """[(title, first line, line after the last, text)] of the banners: a row of #, "# N. Title", a
    row of #."""
    lines = source.decode("ascii").splitlines()
    starts = [
        number
        for number in range(1, len(lines) - 1)
        if re.match("#{20,}$", lines[number - 1]) and re.match(r"# [0-9]+\. ", lines[number])
    ]
    found = []
    for start, end in zip(starts, [*starts[1:], len(lines) + 1]):
        title = lines[start].split(". ", 1)[1].lower()
        found.append((title, start, end, "\n".join(lines[start - 1 : end - 1])))
    return found


def called(node):
    """'os.system' for os.system(...), 'open' for open(...)."""
    parts, f = [], node.func
    while isinstance(f, ast.Attribute):
        parts.append(f.attr)
        f = f.value
    return ".".join(reversed(parts + ([f.id] if isinstance(f, ast.Name) else ["?"])))


def calls(tree):
    return [(called(n), n) for n in ast.walk(tree) if isinstance(n, ast.Call)]


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.module, alias.name


def chapter_of(chapters, line):
    return next((title for title, start, end, _ in chapters if start <= line < end), "")


def test_source_is_ascii_and_has_no_tabs_or_trailing_blanks(source):
    source.decode("ascii")
    assert b"\r" not in source and b"\t" not in source and source.endswith(b"\n")
    assert [n for n, line in enumerate(source.split(b"\n"), 1) if line != line.rstrip()] == []


def test_line_4_is_the_floor_guard(source):
    line = source.split(b"\n")[3].decode("ascii")
    node = ast.parse(line).body[0]
    assert (
        isinstance(node, ast.Expr)
        and line.startswith(('f"', "f'"))
        and "3.6" in line
        and "python3" in line.lower()
    )


def test_no_line_is_wider_than_100_columns(source):
    wide = [number for number, line in enumerate(source.split(b"\n"), 1) if len(line) > 100]
    assert wide == []


@pytest.mark.skipif(sys.version_info < (3, 9), reason="older syntax trees have more nodes")
def test_a_line_says_one_thing(tree, source):
    """Syntax nodes per line that is not blank: 6 in git-filter-repo, bottle and zipfile."""
    lines = [line for line in source.split(b"\n") if line.strip()]
    nodes = sum(1 for _ in ast.walk(tree))
    assert nodes / len(lines) <= 7


def test_no_function_is_longer_than_60_lines(tree):
    assert [found for found in functions(tree) if found[2] > 60] == []


def comprehensions(tree):
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def test_a_comprehension_has_one_for_and_at_most_one_if(tree):
    folded = []
    for node in comprehensions(tree):
        if len(node.generators) > 1 or len(node.generators[0].ifs) > 1:
            folded.append(node.lineno)
    assert folded == []


def test_no_conditional_expression_stands_in_another(tree):
    nested = []
    for node in ast.walk(tree):
        if isinstance(node, ast.IfExp):
            inner = [other for other in ast.walk(node) if isinstance(other, ast.IfExp)]
            if len(inner) > 1:
                nested.append(node.lineno)
    assert nested == []


def is_truth(node):
    """Is it plainly true or false: a comparison, `not`, bool(...), or such things joined?"""
    if isinstance(node, ast.BoolOp):
        return all(is_truth(value) for value in node.values)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not)
    if isinstance(node, ast.Call):
        return getattr(node.func, "id", "") in ("bool", "any", "all", "isinstance")
    return isinstance(node, ast.Compare)


def is_literal(node):
    """A value that is written down: a text, a number, a list, a formatted text ..."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mod, ast.Add)):
        return is_literal(node.left) or is_literal(node.right)
    kinds = ("Constant", "Str", "Num", "Bytes", "List", "Tuple", "Dict", "Set", "ListComp")
    return type(node).__name__ in (*kinds, "JoinedStr", "DictComp", "SetComp")


def is_count(node):
    """len(...), or a number that is written down."""
    if isinstance(node, ast.Call):
        return getattr(node.func, "id", "") == "len"
    return type(node).__name__ in ("Constant", "Num")


def test_no_value_is_multiplied_by_a_truth(tree):
    """`[x] * bool(y)`, `text * (a == b)`: an `if` says it."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            sides = (node.left, node.right)
            lists = any(isinstance(side, (ast.List, ast.ListComp)) for side in sides)
            counted = any(is_count(side) for side in sides)
            if (lists and not counted) or any(is_truth(side) for side in sides):
                found.append(node.lineno)
    assert found == []


def test_no_value_is_chosen_by_and(tree):
    """`flag and [text]`, `a and "b" or "c"`: an `if` says it."""
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.BoolOp)]
    chosen = []
    for node in joined:
        if isinstance(node.op, ast.And) and is_literal(node.values[-1]):
            chosen.append(node.lineno)
    assert chosen == []


def test_chapters_are_there_in_order_and_numbered(chapters, source):
    assert [title for title, _, _, _ in chapters] == CHAPTERS
    numbers = re.findall(rb"(?m)^# ([0-9]+)\. .*\n#{20,}$", source)
    assert list(map(int, numbers)) == list(range(1, len(CHAPTERS) + 1))


def test_imports_are_the_ones_readme_names(tree, dockfix):
    path = os.path.join(os.path.dirname(dockfix.__file__), "README.md")
    if not os.path.exists(path):
        pytest.skip("README.md is not written yet")
    with open(path, "rb") as f:
        text = f.read().decode("utf-8")
    modules = {name.split(".")[0] for name, _ in imported(tree)}
    part = re.search(r"(?ims)^#+[^\n]*\b(?:modules|imports)\b[^\n]*\n(.*?)(?=^#+ |\Z)", text)
    assert part, "README.md has no heading with the word modules or imports"
    named = set(re.findall(r"(?m)^\s*(?:[-*|]\s*)`([a-z_0-9.]+)`", part.group(1)))
    assert {name.split(".")[0] for name in named} == modules


def test_readme_knows_every_command_option_version_and_test(dockfix):
    home = os.path.dirname(dockfix.__file__)
    with open(os.path.join(home, "README.md"), "rb") as f:
        text = f.read().decode("utf-8")
    english, _, chinese = text.partition("\n## \u4e2d\u6587")
    assert dockfix.VERSION in chinese.split("\n")[0]
    headings = "".join(re.findall(r"(?m)^## .*", english))
    for command in dockfix.COMMANDS:
        assert "`%s" % command.name in headings and re.search(
            r"dockfix.py %s " % command.name, chinese
        ), command.name
    named = re.findall(r"`(tests/[a-z_/]+\.py)`", english)
    assert (
        len(named) > 20
        and [path for path in named if not os.path.isfile(os.path.join(home, path))] == []
    )
    known = {
        name
        for command in (None, *dockfix.COMMANDS)
        for name in re.findall(r"--?[a-z][a-z-]*", dockfix.help_text(command))
    }
    assert (
        set(
            re.findall(
                r"(?m)(?<![\w-])--[a-z][a-z-]+",
                re.sub(r"(?m)^.*(?:docker run|docker ps|runlike).*$", "", text),
            )
        )
        <= known
    )


def test_imports_are_the_standard_library_of_every_python(tree):
    names = {name for name, _ in imported(tree)}
    assert (
        not names & (LATER_MODULES | GONE_MODULES)
        and not {n.split(".")[0] for n in names} & GONE_MODULES
    )
    assert all(name is not None for name in names)
    for name in names:
        origin = __import__(name).__spec__.origin
        assert origin in ("built-in", "frozen", None) or "site-packages" not in origin, name
    assert len(names) <= 32, sorted(names)


def test_no_network(tree):
    assert not {name.split(".")[0] for name, _ in imported(tree)} & {
        "socket",
        "ssl",
        "urllib",
        "http",
        "ftplib",
        "smtplib",
        "asyncio",
        "xmlrpc",
    }


STARTERS = re.compile(
    r"^(subprocess\..*|os\.(system|popen|fork|forkpty|exec\w+|spawn\w+|posix_spawn\w*)|pty\..*|multiprocessing\..*)$"
)
WRITERS = re.compile(
    r"^os\.(rename|renames|replace|unlink|remove|rmdir|mkdir|makedirs|link|symlink|chmod|chown|lchown|fchmod|fchown|truncate|ftruncate|"
    r"setxattr|utime|mknod|mkfifo|open)$|^shutil\.(copy\w*|move|rmtree|chown)$|^tempfile\."
)


def opens_for_writing(node):
    mode = (
        node.args[1]
        if len(node.args) > 1
        else next((k.value for k in node.keywords if k.arg == "mode"), None)
    )
    if mode is None:
        return False
    text = getattr(mode, "s", None) if not hasattr(mode, "value") else mode.value
    return not isinstance(text, str) or bool(set(text) & set("wax+"))


def reads_only(node):
    """os.open(..., os.O_RDONLY | ...) by its flags."""
    flags = {
        n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and n.attr.startswith("O_")
    }
    return bool(flags) and not flags & {"O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND"}


def flags_by_name(node):
    """os.open(name, folder, ...): flags that were put together above, for reading folders."""
    return len(node.args) > 1 and isinstance(node.args[1], ast.Name) and node.args[1].id == "folder"


def names_of(block):
    """(names that a block defines, names that it takes from elsewhere); what is local to a function
    is neither."""
    top = symtable.symtable(block, "block", "exec")
    defined = {one.get_name() for one in top.get_symbols() if one.is_assigned()}
    used, tables = {one.get_name() for one in top.get_symbols() if one.is_referenced()}, list(
        top.get_children()
    )
    while tables:
        table = tables.pop()
        used |= {
            one.get_name() for one in table.get_symbols() if one.is_global() and one.is_referenced()
        }
        tables += table.get_children()
    return defined, used - defined


def test_a_chapter_uses_itself_and_earlier_ones(chapters):
    facts = [(title, *names_of(text)) for title, _, _, text in chapters]
    home = {name: title for title, defined, _ in facts for name in defined}
    wrong = []
    for title, _, used in facts:
        for name in sorted(used & set(home)):
            if CHAPTERS.index(home[name]) > CHAPTERS.index(title):
                wrong.append("%s: %s of %s" % (title, name, home[name]))
    assert wrong == []


def test_a_command_is_used_by_nothing_but_the_command_table(chapters):
    """A run_COMMAND stands in one chapter, and only the table calls it."""
    facts = [(title, *names_of(text)) for title, _, _, text in chapters]
    commands = set(
        re.findall(
            r"\brun_[a-z]+",
            next(text for title, _, _, text in chapters if title == "the command table"),
        )
    )
    users = {title for title, _, used in facts if used & commands}
    assert commands and users == {"the command table"}


def test_processes_are_started_in_the_host_chapter_only(tree, chapters):
    outside = [
        (name, node.lineno)
        for name, node in calls(tree)
        if STARTERS.match(name) and chapter_of(chapters, node.lineno) != "the host"
    ]
    assert outside == []


def test_files_are_written_in_two_chapters_only(tree, chapters):
    """The host's, and below an opened folder of a container."""
    outside = []
    for name, node in calls(tree):
        by_flags = name == "os.open" and (reads_only(node) or flags_by_name(node))
        by_mode = name in ("open", "io.open", "os.fdopen") and opens_for_writing(node)
        writes = (WRITERS.match(name) and not by_flags) or by_mode
        if writes and chapter_of(chapters, node.lineno) not in ("the host", "files of a container"):
            outside.append((name, node.lineno))
    assert outside == []


def test_no_shell_no_eval_no_assert(tree):
    wrong = [
        (name, n.lineno)
        for name, n in calls(tree)
        if name
        in (
            "eval",
            "exec",
            "compile",
            "os.system",
            "os.popen",
            "__import__",
            "subprocess.getoutput",
            "subprocess.getstatusoutput",
            "pickle.loads",
        )
    ]
    wrong += [("shell=", n.lineno) for _, n in calls(tree) for k in n.keywords if k.arg == "shell"]
    wrong += [("assert", n.lineno) for n in ast.walk(tree) if isinstance(n, ast.Assert)]
    wrong += [
        ("bare except", n.lineno)
        for n in ast.walk(tree)
        if isinstance(n, ast.ExceptHandler) and n.type is None
    ]
    assert wrong == []


def test_no_chroot_and_no_fork(tree):
    """A container may have chrooted itself into a host mount."""
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)} | {
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name)
    }
    assert not used & {"chroot", "fork", "setns", "unshare"}


def test_nothing_newer_than_3_6(tree):
    found = [
        (n.attr, n.lineno)
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and n.attr in LATER["attributes"]
    ]
    found += [
        (k.arg, n.lineno) for _, n in calls(tree) for k in n.keywords if k.arg in LATER["keywords"]
    ]
    found += [
        ("text=", n.lineno)
        for name, n in calls(tree)
        if name.startswith("subprocess.")
        for k in n.keywords
        if k.arg == "text"
    ]
    found += [
        ("required=", n.lineno)
        for name, n in calls(tree)
        if name.endswith("add_subparsers")
        for k in n.keywords
        if k.arg == "required"
    ]
    for where, names in LATER.items():
        if where.startswith("from "):
            module = where[5:]
            found += [
                (name, None)
                for origin, name in imported(tree)
                if origin == module and name in names
            ]
            found += [
                (n.attr, n.lineno)
                for n in ast.walk(tree)
                if isinstance(n, ast.Attribute)
                and n.attr in names
                and isinstance(n.value, ast.Name)
                and n.value.id == module
            ]
    newer = [
        getattr(ast, name)
        for name in ("NamedExpr", "Match", "TryStar", "TypeAlias")
        if hasattr(ast, name)
    ]
    found += [(type(n).__name__, n.lineno) for n in ast.walk(tree) if isinstance(n, tuple(newer))]
    found += [
        ("positional-only", n.lineno)
        for n in ast.walk(tree)
        if isinstance(n, ast.arguments) and getattr(n, "posonlyargs", [])
    ]
    assert found == []


def test_no_annotation_that_3_6_evaluates_and_lacks(tree):
    """list[int] and int | None are errors at import on 3.6 to 3.9."""
    wrong = []
    for node in ast.walk(tree):
        for note in [getattr(node, "annotation", None), getattr(node, "returns", None)]:
            for inner in ast.walk(note) if isinstance(note, ast.AST) else []:
                if isinstance(inner, ast.BinOp) or (
                    isinstance(inner, ast.Subscript)
                    and getattr(inner.value, "id", "") in dir(builtins)
                ):
                    wrong.append(inner.lineno)
    assert wrong == []


def last_line(node):
    return max([getattr(n, "end_lineno", None) or getattr(n, "lineno", 0) for n in ast.walk(node)])


def functions(tree):
    return [
        (n.name, n.lineno, last_line(n) - n.lineno + 1)
        for n in ast.walk(tree)
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def test_no_function_is_left_unused(tree, dockfix, source):
    """A public name is either used in the file or tried by a test of this folder."""
    words, tried = collections.Counter(re.findall(r"\w+", source.decode("ascii"))), set()
    here = os.path.dirname(os.path.abspath(__file__))
    for name in os.listdir(here):
        if name.endswith(".py"):
            with open(os.path.join(here, name), "rb") as f:
                tried.update(re.findall(r"\w+", f.read().decode("utf-8")))
    unused = [
        name
        for name, _, _ in functions(tree)
        if not name.startswith("__")
        and words[name] < 2
        and name not in tried
        and not hasattr(__import__("argparse").ArgumentParser, name)
    ]
    assert unused == []


def test_version_is_there(dockfix):
    assert re.match(r"[0-9]+\.[0-9]+", dockfix.VERSION)


def test_every_hazard_has_its_row_and_the_tests_that_it_names_are_there(dockfix):
    home = os.path.dirname(dockfix.__file__)
    with open(os.path.join(home, "tests", "vm", "HAZARDS.md")) as f:
        text = f.read()
    rows = dict(re.findall(r"(?m)^\| ([0-9]+) \|.*\| ([^|]+) \|$", text))
    assert sorted(map(int, rows)) == list(range(1, 28)) and all(
        "::" in row for row in rows.values()
    )
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text):
        with open(os.path.join(home, path)) as f:
            assert "\ndef %s(" % name in f.read(), (path, name)
