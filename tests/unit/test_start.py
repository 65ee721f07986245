"""How the file starts: imported, run as a script beside a hostile json.py, read from standard
input, met by Python 2."""

import glob
import os
import shutil
import subprocess
import sys

import pytest

LEFT_BEHIND = (
    "import sys\nsys.stderr.write('HIJACKED by ' + __name__ + '\\n')\nraise SystemExit(77)\n"
)
SNOOP = """
import os, signal, sys, threading
sys.path.insert(0, {folder!r})
def state():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP)
    return (dict(os.environ), os.getcwd(), os.umask(0o22), list(sys.path), list(sys.argv),
            sys.stdout, sys.stderr, sys.stdin, sys.excepthook,
            [signal.getsignal(n) for n in numbers], threading.active_count(),
            sorted(os.listdir({cwd!r})), sorted(os.listdir("/proc/self/fd")))
import argparse, json, subprocess, tarfile, tempfile, hashlib, getpass, concurrent.futures
before = state()
import dockfix
assert state() == before, (before, state())
assert dockfix.__doc__
print("quiet")
"""


@pytest.fixture
def copied(box):
    """dockfix.py on its own in a folder full of modules that lie in wait."""
    folder = box.at("usb stick")
    os.mkdir(folder)
    shutil.copy(box.module.__file__, folder)
    for name in imported(box.module.__file__) - {"os", "sys"}:
        with open(os.path.join(folder, name + ".py"), "w") as f:
            f.write(LEFT_BEHIND)
    return folder


def imported(path):
    import ast

    with open(path, "rb") as f:
        tree = ast.parse(f.read())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


def test_import_has_no_side_effect(box):
    folder = os.path.dirname(box.module.__file__)
    result = box.spawn(
        [sys.executable, "-c", SNOOP.format(folder=folder, cwd=box.path)],
        env={"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert (result.rc, result.out, result.err) == (0, b"quiet\n", b""), result


def test_import_starts_nothing_and_opens_nothing_for_writing(dockfix, load_again, monkeypatch):
    def forbidden(*args, **kw):
        raise AssertionError("import did something")

    monkeypatch.setattr(subprocess, "Popen", forbidden)
    for name in ("system", "fork", "mkdir", "makedirs", "unlink", "rename"):
        monkeypatch.setattr(os, name, forbidden)
    again = load_again()
    assert again.VERSION == dockfix.VERSION


def test_modules_lying_beside_the_script_are_not_imported(box, copied):
    result = box.script("--version", program=os.path.join(copied, "dockfix.py"), state=False)
    assert result.rc == 0 and b"HIJACKED" not in result.err and result.out.startswith(b"dockfix ")


def test_nor_when_it_is_run_by_its_bare_name(box, copied):
    box.container("web1")
    result = box.spawn(
        [sys.executable, "dockfix.py", "--state", box.state, "exec", "web1", "--", "x"], cwd=copied
    )
    assert result.rc == 0 and b"HIJACKED" not in result.err, result


def test_nor_when_it_is_run_through_a_link(box, copied):
    os.symlink(os.path.join(copied, "dockfix.py"), box.at("bin", "dockfix"))
    result = box.spawn([sys.executable, box.at("bin", "dockfix"), "--version"], cwd=copied)
    assert result.rc == 0 and b"HIJACKED" not in result.err, result


def from_stdin(box, folder, *args, place="-"):
    box.write_world()
    with open(os.path.join(folder, "dockfix.py"), "rb") as f:
        p = subprocess.Popen(
            [sys.executable, place, *list(args)],
            stdin=f,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=box.env,
            cwd=folder,
        )
        out, err = p.communicate(timeout=30)
    return p.returncode, out, err


def test_nor_when_it_is_read_from_standard_input(box, copied):
    code, out, err = from_stdin(box, copied, "--version")
    assert code == 0 and out.startswith(b"dockfix ") and b"HIJACKED" not in err, err


def test_read_from_standard_input_it_works(box, copied):
    box.container("web1")
    code, out, err = from_stdin(box, copied, "--state", box.state, "exec", "web1", "--", "x")
    assert code == 0 and b"web1" in out and err == b"", err


@pytest.mark.parametrize("place", ["-", "/dev/stdin"])
@pytest.mark.parametrize(
    "args",
    [
        ["chpasswd", "web1"],
        ["chpasswd", "web1", "--password-stdin"],
        ["chpasswd", "--from", "-", "--password-file", "PW"],
        ["exec", "web1", "--script", "-"],
        ["exec", "web1", "--stdin", "-", "--", "x"],
        ["exec", "--from", "-", "--", "x"],
    ],
    ids=" ".join,
)
def test_read_from_standard_input_it_cannot_read_anything_else_there(box, copied, args, place):
    """It said that standard input was empty, or ran an empty script, and called that a success."""
    box.container("web1")
    args = [box.file("pw", b"pw") if word == "PW" else word for word in args]
    code, _out, err = from_stdin(box, copied, "--state", box.state, *args, place=place)
    assert (
        code == 2
        and b"dockfix itself was read from standard input" in err
        and box.field("web1") == b"*"
        and box.calls() == []
    ), err


def test_read_from_standard_input_its_scripts_name_dockfix_py(box, copied):
    box.container("web1")
    code, out, _err = from_stdin(box, copied, "-n", "--state", box.state, "chpasswd", "web1")
    assert code == 0 and b"python3 dockfix.py " in out, out


def old_pythons():
    root = os.path.expanduser(os.environ.get("PYENV_ROOT", "~/.pyenv"))
    found = [
        shutil.which("python2.7"),
        shutil.which("python2"),
        *glob.glob(os.path.join(root, "versions", "2.7*", "bin", "python2.7")),
    ]
    return [
        path
        for path in found
        if path and subprocess.call([path, "-c", ""], stderr=subprocess.DEVNULL) == 0
    ]


def test_python_2_meets_a_readable_line(dockfix):
    pythons = old_pythons()
    if not pythons:
        pytest.skip("there is no Python 2.7 here")
    p = subprocess.Popen(
        [pythons[0], dockfix.__file__, "--version"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = p.communicate()
    assert p.returncode != 0 and out == b""
    lines = err.decode().splitlines()
    assert (
        "line 4" in lines[0]
        and "3.6" in lines[1]
        and "python3" in lines[1].lower()
        and "SyntaxError" in lines[-1]
    ), err


def test_it_compiles_without_a_warning(dockfix):
    with open(dockfix.__file__, "rb") as f:
        p = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error",
                "-c",
                "import sys; compile(sys.stdin.buffer.read(), 'dockfix.py', 'exec')",
            ],
            stdin=f,
            stderr=subprocess.PIPE,
        )
        assert p.communicate()[1] == b"" and p.returncode == 0


def test_a_run_gives_no_warning_of_python(box):
    box.container("web1")
    result = box.spawn(
        [
            sys.executable,
            "-W",
            "error",
            "-X",
            "dev" if sys.version_info >= (3, 7) else "faulthandler",
            box.module.__file__,
            "--state",
            box.state,
            "chpasswd",
            "web1",
        ],
        stdin=b"root:x\n",
    )
    assert result.rc == 0 and b"Warning" not in result.err and box.field("web1") != b"*", result
