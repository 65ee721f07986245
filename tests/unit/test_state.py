"""The state folder and its lock."""

import fcntl
import os

import pytest

CHANGING = {
    "chpasswd": ["chpasswd", "web1", "--password-file", "SECRET"],
    "exec": ["exec", "web1", "--", "x"],
}


def words(box, name):
    return [box.file("secret", b"pw") if word == "SECRET" else word for word in CHANGING[name]]


def locks(box):
    return [box.at("state", name) for name in os.listdir(box.state)]


@pytest.fixture
def used(web):
    """A box whose state folder is there."""
    assert web.quick("exec", "web1", "--", "x").rc == 0
    web.forget()
    return web


@pytest.mark.parametrize("umask", [0o022, 0o000])
def test_the_folder_is_for_its_owner_alone(web, umask):
    kept = os.umask(umask)
    try:
        assert web.quick("exec", "web1", "--", "x").rc == 0
    finally:
        os.umask(kept)
    st = os.stat(web.state)
    assert st.st_mode & 0o7777 == 0o700 and st.st_uid == os.geteuid()
    assert all(os.stat(path).st_mode & 0o077 == 0 for path in locks(web))


@pytest.mark.parametrize("name", sorted(CHANGING))
def test_an_exclusive_lock_of_another_is_exit_8(used, name):
    for path in locks(used):
        fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX)
    args = words(used, name)
    result = used.quick("--json", *args)
    assert result.rc == 8 and result.json["errors"][0]["code"] == 8
    assert not [c for c in used.calls() if c.command == "exec"] and used.field("web1") == b"*"
    assert used.quick("-n", *args).rc == 0


@pytest.mark.parametrize("name", sorted(CHANGING))
def test_a_shared_lock_of_another_is_no_hindrance(used, name):
    held = [os.open(path, os.O_RDONLY) for path in locks(used)]
    for fd in held:
        fcntl.flock(fd, fcntl.LOCK_SH)
    assert used.quick(*words(used, name)).rc == 0
    for fd in held:
        os.close(fd)


def test_a_folder_of_another_user_is_refused(web):
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.mkdir(web.state, 0o700)
    os.chown(web.state, 65534, 65534)
    result = web.quick("--json", "exec", "web1", "--", "x")
    assert result.rc == 5 and not web.calls("exec")
    assert web.state in result.json["errors"][0]["msg"]


def test_a_folder_that_is_a_link_or_a_file_is_refused(web):
    os.mkdir(web.at("elsewhere"), 0o755)
    web.file("plain", b"")
    for name in ("plain", "bin/docker"):
        result = web.quick("--state", web.at(name), "exec", "web1", "--", "x", state=False)
        assert result.rc == 6 and b"Traceback" not in result.err, result
    assert not web.calls("exec")


def test_a_folder_open_to_others_is_refused(web):
    os.mkdir(web.state)
    os.chmod(web.state, 0o777)
    result = web.quick("exec", "web1", "--", "x")
    assert result.rc == 5 and not web.calls("exec"), result


def test_a_lock_that_is_a_link_is_not_followed(used):
    target = used.file("precious", b"precious")
    for path in locks(used):
        os.unlink(path)
        os.symlink(target, path)
    used.quick("exec", "web1", "--", "x")
    assert used.read("precious") == b"precious" and os.stat(target).st_mode & 0o7777 == 0o600


def test_a_state_that_cannot_be_made_is_exit_6(web):
    result = web.quick(
        "--json", "--state", "/proc/none/state", "exec", "web1", "--", "x", state=False
    )
    assert result.rc == 6 and not web.calls("exec")


def test_others_than_root_use_their_own_folder(web):
    """geteuid answers 1000: $XDG_STATE_HOME/dockfix, else ~/.local/state/dockfix."""

    def prelude(dockfix):
        real = os.geteuid()
        dockfix.os.geteuid = dockfix.os.getuid = lambda: 1000
        lstat, fstat, stat = os.lstat, os.fstat, os.stat

        def owned(function):
            def looked(*args, **kw):
                st = function(*args, **kw)
                return os.stat_result(
                    (*tuple(st[:4]), 1000 if st.st_uid == real else st.st_uid, *tuple(st[5:]))
                )

            return looked

        dockfix.os.stat, dockfix.os.lstat, dockfix.os.fstat = (
            owned(stat),
            owned(lstat),
            owned(fstat),
        )

    home = web.at("xdg")
    os.mkdir(home)
    result = web.quick(
        "exec", "web1", "--", "x", state=False, prelude=prelude, env={"XDG_STATE_HOME": home}
    )
    assert result.rc == 0 and os.path.isdir(os.path.join(home, "dockfix")), result
    result = web.quick("exec", "web1", "--", "x", state=False, prelude=prelude)
    assert result.rc == 0 and os.path.isdir(web.at("home", ".local", "state", "dockfix")), result


def test_reading_only_makes_no_folder(web):
    assert web.quick("-n", "exec", "web1", "--", "x").rc == 0
    assert web.quick("exec", "ghost", "--", "x").rc == 2
    assert web.quick("--version").rc == 0
    assert not os.path.exists(web.state)
