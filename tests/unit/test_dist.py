"""What `make dist` makes: the .pyz is the same bytes on every Python, keeps the exit code, and
SHA256SUMS verifies."""

import glob
import hashlib
import os
import subprocess
import sys

import pytest


def other_pythons():
    root = os.path.expanduser(os.environ.get("PYENV_ROOT", "~/.pyenv"))
    found = [
        *sorted(glob.glob(os.path.join(root, "versions", "3.*", "bin", "python3"))),
        "/usr/bin/python3",
    ]
    mine = "%d.%d" % sys.version_info[:2]
    seen = {}
    for path in found:
        if os.path.exists(path):
            p = subprocess.Popen(
                [
                    path,
                    "-c",
                    (
                        "import sys; print('%d.%d' % sys.version_info[:2]);"
                        " sys.exit(sys.version_info < (3, 6))"
                    ),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            version = p.communicate()[0].decode().strip()
            if p.returncode == 0 and version != mine:
                seen.setdefault(version, path)
    return [
        path
        for _, path in sorted(seen.items(), key=lambda item: [int(n) for n in item[0].split(".")])
    ]


@pytest.fixture(scope="module")
def build(dockfix, tmp_path_factory):
    script = os.path.join(os.path.dirname(dockfix.__file__), "tests", "build_dist.py")
    if not os.path.exists(script):
        pytest.skip("tests/build_dist.py is not there")

    def make(python):
        folder = str(tmp_path_factory.mktemp("dist"))
        p = subprocess.Popen(
            [python, script, folder], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder
        )
        said = p.communicate()[0]
        assert p.returncode == 0, said
        return folder

    return make


@pytest.fixture(scope="module")
def dist(build):
    return build(sys.executable)


def content(folder):
    found = {}
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), "rb") as f:
            found[name] = f.read()
    return found


def test_it_makes_three_files(dist, dockfix):
    made = content(dist)
    assert sorted(made) == ["SHA256SUMS", "dockfix.py", "dockfix.pyz"]
    with open(dockfix.__file__, "rb") as f:
        assert made["dockfix.py"] == f.read()


def test_the_sums_verify(dist):
    made = content(dist)
    lines = dict(
        reversed(line.split("  ")) for line in made["SHA256SUMS"].decode("ascii").splitlines()
    )
    assert lines == {
        name: hashlib.sha256(made[name]).hexdigest() for name in ("dockfix.py", "dockfix.pyz")
    }
    assert (
        subprocess.call(["sha256sum", "-c", "SHA256SUMS"], cwd=dist, stdout=subprocess.DEVNULL) == 0
    )


def test_a_second_build_is_the_same_bytes(build, dist):
    assert content(build(sys.executable)) == content(dist)


def test_another_python_builds_the_same_bytes(build, dist):
    others = other_pythons()
    if not others:
        pytest.skip("there is only one Python here")
    for python in {others[0], others[-1]}:
        assert content(build(python)) == content(dist), python


def test_the_pyz_works_and_keeps_the_exit_code(box, dist):
    box.container("web1")
    pyz = os.path.join(dist, "dockfix.pyz")
    assert box.script("exec", "ghost", "--", "x", program=pyz).rc == 2
    assert box.script("chpasswd", "web1", program=pyz, stdin=b"root:x\n").rc == 0 and box.field(
        "web1"
    ).startswith(b"$6$")
    box.rule("exec", rc=1)
    assert box.script("exec", "web1", "--", "x", program=pyz).rc == 1


def test_the_pyz_names_itself_in_its_version(box, dist):
    result = box.script("--version", program=os.path.join(dist, "dockfix.pyz"), state=False)
    assert result.rc == 0 and result.out.startswith(b"dockfix ")


def test_the_pyz_is_stored_and_dated_1980(dist):
    import zipfile

    with zipfile.ZipFile(os.path.join(dist, "dockfix.pyz")) as z:
        assert z.testzip() is None
        for info in z.infolist():
            assert info.compress_type == zipfile.ZIP_STORED and info.date_time == (
                1980,
                1,
                1,
                0,
                0,
                0,
            )
