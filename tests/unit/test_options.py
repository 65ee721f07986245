"""Where the daemon's options are set: units with drop-ins and joined lines, settings files,
daemon.json, command lines."""

import functools
import os

import pytest

from common import wait_until

CENTOS = """\
[Unit]
Description=Docker Application Container Engine
ExecStart=/not/this/section

[Service]
Type=notify
EnvironmentFile=-/etc/sysconfig/docker
EnvironmentFile=-/etc/sysconfig/docker-storage
Environment=GOTRACEBACK=crash "EXTRA=--log-opt max-size=10m"
ExecStart=/bin/sh -c '/usr/bin/docker-current daemon \\
# a comment between joined lines
          --exec-opt native.cgroupdriver=systemd \\
          $OPTIONS $DOCKER_STORAGE_OPTIONS $EXTRA'
LimitNOFILE=1048576
"""
PLAIN = (
    "[Service]\nExecStart=/usr/bin/dockerd -H fd:// --storage-opt dm.loopdatasize=500G"
    " --storage-opt=dm.basesize=8G -g /data/docker\n"
)


@pytest.fixture
def top(tmp_path):
    def write(path, text):
        path = str(tmp_path / path.lstrip("/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as f:
            f.write(text)

    write.path = str(tmp_path)
    return write


def seen(dockfix, top):
    """{place: options} of what counts for the next start."""
    return {
        one.where().replace(top.path, ""): dict(one.options)
        for one in dockfix.option_sources(top.path)
        if one.options and one.used
    }


def test_a_plain_unit(dockfix, top):
    top("lib/systemd/system/docker.service", PLAIN)
    sources = dockfix.option_sources(top.path)
    assert [(one.kind, one.options, one.used) for one in sources] == [
        (
            "unit",
            (
                ("storage-opt", "dm.loopdatasize=500G"),
                ("storage-opt", "dm.basesize=8G"),
                ("data-root", "/data/docker"),
            ),
            True,
        ),
        ("daemon.json", (), True),
    ]
    assert (
        sources[0].raw.startswith("/usr/bin/dockerd -H fd://")
        and sources[1].path == "/etc/docker/daemon.json"
    )
    assert dockfix.option_conflicts(sources) == []


def test_centos_with_its_shell_and_its_files(dockfix, top):
    top("usr/lib/systemd/system/docker.service", CENTOS)
    top(
        "etc/sysconfig/docker",
        "# OPTIONS=--storage-driver=aufs\nOPTIONS='--selinux-enabled -s devicemapper'\nif [ -z x ];"
        " then\n    DOCKER_CERT_PATH=/etc/docker\nfi\n",
    )
    top(
        "etc/sysconfig/docker-storage",
        'DOCKER_STORAGE_OPTIONS="--storage-opt dm.fs=xfs \\\n --storage-opt'
        ' dm.loopdatasize=200G"\n',
    )
    assert seen(dockfix, top) == {
        "/usr/lib/systemd/system/docker.service (EXTRA)": {"log-opt": "max-size=10m"},
        "/etc/sysconfig/docker (OPTIONS)": {"storage-driver": "devicemapper"},
        "/etc/sysconfig/docker-storage (DOCKER_STORAGE_OPTIONS)": {
            "storage-opt": "dm.loopdatasize=200G"
        },
    }
    before = dockfix.option_sources(top.path)
    top(
        "etc/systemd/system/docker.service.d/again.conf",
        "[Service]\nEnvironmentFile=/etc/sysconfig/docker\n",
    )  # the same file twice is one place
    assert (
        sorted(dockfix.option_sources(top.path)) == sorted(before)
        and dockfix.option_conflicts(before) == []
    )


def test_a_drop_in_replaces_and_hides(dockfix, top):
    top("lib/systemd/system/docker.service", PLAIN)
    top(
        "lib/systemd/system/docker.service.d/10-a.conf",
        "[Service]\nExecStart=\nExecStart=/usr/bin/dockerd --storage-opt dm.basesize=1G\n",
    )
    top(
        "etc/systemd/system/docker.service.d/10-a.conf",
        "[Service]\nExecStart=\nExecStart=/usr/bin/dockerd --storage-opt dm.basesize=20G\n",
    )
    top(
        "run/systemd/system/docker.service.d/05-b.conf",
        "[Service]\nExecStart=\nExecStart=/usr/bin/dockerd --storage-opt dm.basesize=2G\n",
    )
    assert seen(dockfix, top) == {
        "/etc/systemd/system/docker.service.d/10-a.conf": {"storage-opt": "dm.basesize=20G"}
    }


def test_a_settings_file_that_no_unit_reads_counts_only_without_a_unit(dockfix, top):
    top("etc/default/docker", 'DOCKER_OPTS="--storage-driver=overlay2"\n')
    assert seen(dockfix, top) == {
        "/etc/default/docker (DOCKER_OPTS)": {"storage-driver": "overlay2"}
    }
    top("lib/systemd/system/docker.service", PLAIN)
    assert "/etc/default/docker (DOCKER_OPTS)" not in seen(dockfix, top)
    assert [
        one.where() for one in dockfix.option_sources(top.path) if one.options and not one.used
    ] == ["/etc/default/docker (DOCKER_OPTS)"]


def test_daemon_json_and_its_other_place(dockfix, top):
    top(
        "etc/docker/daemon.json",
        '{"storage-driver": "devicemapper", "storage-opts": ["dm.basesize=8G"], "graph": "/srv/d",'
        ' "log-opts": {"max-size": "5m"}}',
    )
    assert dockfix.option_sources(top.path)[0].options == (
        ("storage-opt", "dm.basesize=8G"),
        ("storage-driver", "devicemapper"),
        ("data-root", "/srv/d"),
        ("log-opt", "max-size=5m"),
    )
    top(
        "lib/systemd/system/docker.service",
        "[Service]\nExecStart=/usr/bin/dockerd --config-file=/etc/other.json\n",
    )
    top("etc/other.json", '{"storage-driver": "vfs"}')
    assert seen(dockfix, top)["/etc/other.json"] == {"storage-driver": "vfs"}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '"x"',
        '{"storage-opts": 7}',
        '{"log-opts": []',
        '{"log-opts": "a"}',
        "\x00",
        "{" * 100000,
    ],
)
def test_a_broken_daemon_json_is_a_fault_not_a_crash(dockfix, top, text):
    top("etc/docker/daemon.json", text)
    (one,) = dockfix.option_sources(top.path)
    assert one.fault and one.options == () and one.raw == text


@pytest.mark.parametrize(
    "unit, config, named",
    [
        ("--storage-opt dm.basesize=8G", {"storage-opts": ["dm.basesize=9G"]}, {"dm.basesize"}),
        ("--storage-opt dm.basesize=8G", {"storage-opts": ["dm.fs=xfs"]}, {"storage-opts"}),
        ("-s overlay2", {"storage-driver": "overlay2"}, {"storage-driver"}),
        ("--graph /a", {"data-root": "/b"}, {"data-root"}),
        ("--storage-opt dm.basesize=8G --storage-opt dm.basesize=9G", {}, {"dm.basesize"}),
        (
            "--storage-opt dm.basesize=8G --storage-opt dm.fs=xfs",
            {"storage-driver": "devicemapper"},
            set(),
        ),
    ],
)
def test_set_in_two_places(dockfix, top, unit, config, named):
    import json

    top("lib/systemd/system/docker.service", "[Service]\nExecStart=/usr/bin/dockerd %s\n" % unit)
    top("etc/docker/daemon.json", json.dumps(config))
    found = dockfix.option_conflicts(dockfix.option_sources(top.path))
    assert {name for name, _ in found} == named and all(len(where) >= 2 for _, where in found)


def test_what_cannot_be_read_is_said(dockfix, top):
    os.makedirs(os.path.join(top.path, "etc/docker/daemon.json"))
    (one,) = dockfix.option_sources(top.path)
    assert "cannot be read" in one.fault


@pytest.mark.parametrize(
    "words, options",
    [
        (["dockerd", "--storage-opt", "dm.basesize=8G"], (("storage-opt", "dm.basesize=8G"),)),
        (
            ["dockerd", "--storage-opt=dm.basesize=8G", "-s=vfs"],
            (("storage-opt", "dm.basesize=8G"), ("storage-driver", "vfs")),
        ),
        (["dockerd", "--storage-opt"], (("storage-opt", ""),)),
        (["sh", "-c", "docker daemon -g /x $A 2>&1 | logger"], (("data-root", "/x"),)),
        (["sh", "-c", "docker daemon -g '/x"], (("data-root", "'/x"),)),
        (
            ["dockerd", "--live-restore", "--storage-driver", "vfs"],
            (("live-restore", ""), ("storage-driver", "vfs")),
        ),
    ],
)
def test_words_of_a_daemon(dockfix, words, options):
    assert dockfix.parse_daemon_flags(words) == options


def test_running_daemons_are_told_by_their_words(dockfix, tmp_path):
    """A sleeping stand-in by that name, with a root of its own."""
    import signal
    import subprocess
    import sys

    name = str(tmp_path / "dockerd-current")
    os.symlink(sys.executable, name)
    child = subprocess.Popen(
        [
            name,
            "-c",
            "print(1, flush=True); import time; time.sleep(60)",
            "--storage-opt",
            "dm.fs=xfs",
            "-g",
            "/nowhere",
        ],
        stdout=subprocess.PIPE,
    )
    try:
        child.stdout.readline()
        (one,) = [one for one in dockfix.running_daemons() if one.variable == str(child.pid)]
        assert (
            one.options == (("storage-opt", "dm.fs=xfs"), ("data-root", "/nowhere"))
            and one.kind == "running"
            and not one.used
        )
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()


def pids_named(name):
    return [pid for pid in filter(str.isdigit, os.listdir("/proc")) if named(pid, name)]


def test_a_daemon_in_other_namespaces_is_not_this_hosts(dockfix, tmp_path):
    """Rootless ones have users of their own, a container's process numbers of its own; a mount
    namespace of its own says nothing."""
    import signal
    import subprocess

    name = str(tmp_path / "dockerd")
    os.symlink(os.path.realpath("/bin/sleep"), name)
    for options, mine in (
        (["--mount"], True),
        (["--user", "--map-root-user"], False),
        (["--pid", "--fork", "--kill-child"], False),
    ):
        argv = ["unshare", *options]
        if subprocess.call([*argv, "true"], stderr=subprocess.DEVNULL):
            pytest.skip("no namespaces here: %s" % " ".join(argv))
        parent = subprocess.Popen([*argv, name, "60"])
        try:
            wait_until(functools.partial(pids_named, name), "stand-in")
            calls = pids_named(name)
            found = {one.variable for one in dockfix.running_daemons()}
            assert (calls[0] in found) is mine, options
        finally:
            for pid in calls:
                os.kill(int(pid), signal.SIGKILL)
            parent.kill()
            parent.wait()


def named(pid, name):
    try:
        with open("/proc/%s/cmdline" % pid) as f:
            return f.read().split("\0")[0] == name
    except OSError:
        return False


@pytest.mark.parametrize(
    "cgroup",
    [
        "0::/system.slice/docker-%s.scope\n",
        "12:pids:/docker/%s\n",
        "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-%s.scope\n",
        "0::/machine.slice/libpod-%s.scope/container\n",
    ],
)
def test_a_daemon_in_a_containers_cgroup_is_not_this_hosts(dockfix, monkeypatch, cgroup):
    """With --pid host it has the host's process numbers and users. Where dockfix runs in the same
    container, the daemon there is its own."""
    real, seen = dockfix.read_host_text, {}

    def text(path):
        return seen.get(path) or real(path)

    monkeypatch.setattr(dockfix, "read_host_text", text)
    pid = str(os.getpid())
    assert dockfix.is_of_this_host(pid)
    seen["/proc/%s/cgroup" % pid] = cgroup % ("e" * 64)
    assert not dockfix.is_of_this_host(pid)
    seen["/proc/self/cgroup"] = cgroup % ("e" * 64)
    assert dockfix.is_of_this_host(pid)


def test_a_daemon_of_another_user_is_not_this_hosts(dockfix, monkeypatch):
    """Any user of the host can call a program dockerd."""
    real, pid = dockfix.read_host_text, str(os.getpid())
    assert dockfix.is_of_this_host(pid)
    status = real("/proc/%s/status" % pid).replace("Uid:\t0\t", "Uid:\t65534\t")

    def text(path):
        return status if path == "/proc/%s/status" % pid else real(path)

    monkeypatch.setattr(dockfix, "read_host_text", text)
    assert not dockfix.is_of_this_host(pid)


@pytest.mark.parametrize(
    "settings, path",
    [
        ("DOCKER_PIDFILE=/srv/docker.pid\n", "/srv/docker.pid"),
        ('export DOCKER_PIDFILE="/srv/my docker.pid"\n', "/srv/my docker.pid"),
        ("DOCKER_PIDFILE=/var/run/$BASE.pid\n", "/var/run/docker.pid"),
        ("DOCKER_OPTS=--debug\n", "/var/run/docker.pid"),
        (None, "/var/run/docker.pid"),
    ],
)
def test_the_pid_file_of_an_init_script(dockfix, tmp_path, monkeypatch, settings, path):
    """An option of the daemon comes behind the variable, and wins."""
    file = tmp_path / "docker"
    if settings is not None:
        file.write_text(settings)
    monkeypatch.setattr(dockfix, "option_sources", list)
    assert dockfix.service_pid_file(str(file)) == path
    option = dockfix.DaemonOption("pidfile", "/run/other.pid")
    source = dockfix.OptionSource("environment", "/x", "DOCKER_OPTS", "", (option,), True)
    monkeypatch.setattr(dockfix, "option_sources", lambda: [source])
    assert dockfix.service_pid_file(str(file)) == "/run/other.pid"
