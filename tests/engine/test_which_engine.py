"""A storage change acts on this host's docker service, proved to be what answers, or on nothing:
with a second real daemon, one over tcp, one of another host, a rootless one, podman and wrappers
before it, no service is stopped and not one byte changes."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile

import pytest

from conftest import Lab, tree
from kit import CannotRun, PrivateEngine

READING = ("show", "is-active", "status")  # verbs that change nothing


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Hosts:
    """The service's engine (lab) and a second one on the same host; what is called of service and
    systemctl is written down."""

    def __init__(self, lab, second, port):
        self.lab, self.second, self.port = lab, second, port
        self.calls = os.path.join(lab.folder, "calls")
        self.config = os.path.join(lab.folder, "config")
        os.mkdir(self.config)
        for name in ("service", "systemctl"):
            path = lab.engine.path("bin", name)
            os.rename(path, path + ".real")
            lines = "#!/bin/sh\necho %s $* >> %s\nexec %s.real $@\n" % (
                name,
                shlex.quote(self.calls),
                path,
            )
            write(path, lines)

    def go(self, *words, prefix=(), **env):
        """env: with None the variable is not there (an empty DOCKER_HOST is one, to older
        clients)."""
        unset = ["env"] + ["-u" + name for name in env if env[name] is None]
        env = {name: value for name, value in env.items() if value is not None}
        before = self.lab.engine.inside() + unset + list(prefix)
        return self.lab.dockfix(*words, prefix=before, env=env)

    def changing_calls(self):
        if not os.path.exists(self.calls):
            return []
        with open(self.calls) as f:
            return [line for line in f.read().splitlines() if not set(READING) & set(line.split())]

    def picture(self):
        """All that a wrong step would change: the settings, both roots, and the processes that
        serve them and run in them."""
        engines = (self.lab.engine, self.second)
        roots = [tree(one.path("root")) for one in engines]
        pids = [one.docker("inspect", "-f", "{{.State.Pid}}", "web").stdout for one in engines]
        return tree(self.lab.engine.path("etc", "upper")), roots, pids, self.changing_calls()

    def wrapper(self, text):
        """A docker command of one's own."""
        path = os.path.join(self.lab.new_folder(), "docker")
        return write(path, "#!/bin/sh\nreal=%s\n%s\n" % (shlex.quote(self.lab.engine.client), text))

    def new_root(self):
        return os.path.join(self.lab.new_folder(), "docker")


def write(path, text):
    with open(path, "w") as f:
        f.write(text)
    os.chmod(path, 0o755)
    return path


@pytest.fixture(scope="module")
def hosts(cannot_run):
    folder = os.path.realpath(tempfile.mkdtemp(prefix="dockfix-which-"))
    os.chmod(folder, 0o755)
    port = free_port()
    service = PrivateEngine(own_etc=True, extra=["-H", "tcp://127.0.0.1:%d" % port])
    second = PrivateEngine()
    try:
        for engine in (service, second):
            engine.start()
            engine.run(engine.import_busybox("ring/busybox"), "--name", "web", "--init")
        lab = Lab(service, folder)
        yield Hosts(lab, second, port)
    except CannotRun as reason:
        cannot_run(reason)
    finally:
        second.stop()
        service.stop()
        shutil.rmtree(folder)


def socket_of(engine):
    return "unix://" + engine.path("docker.sock")


CHANGES = {
    "relocate": lambda hosts: ("relocate", hosts.new_root()),
    "grow": lambda hosts: ("pool", "grow", "--data", "+1G"),
    "recreate": lambda hosts: ("pool", "recreate", "--backup", hosts.new_root()),
}


def second_daemon(hosts):
    return {"env": {"DOCKER_HOST": socket_of(hosts.second)}}, hosts.second.path("root")


def second_by_option(hosts):
    words = "docker -H %s" % socket_of(hosts.second)
    return {"words": ("--docker", words)}, hosts.second.path("root")


def second_by_context(hosts):
    make_context(hosts)
    env = {"DOCKER_HOST": None, "DOCKER_CONFIG": hosts.config, "DOCKER_CONTEXT": "second"}
    return {"env": env}, hosts.second.path("root")


def second_by_current_context(hosts):
    make_context(hosts)
    write(os.path.join(hosts.config, "config.json"), '{"currentContext": "second"}')
    env = {"DOCKER_HOST": None, "DOCKER_CONFIG": hosts.config}
    return {"env": env}, hosts.second.path("root")


def make_context(hosts):
    """As `docker context create second` keeps it (docker/cli, cli/context/store)."""
    name = "16367aacb67a4a017c8da8ab95682ccb390863780f7114dda0a0e0c55644c7c4"  # sha256 of its name
    folder = os.path.join(hosts.config, "contexts", "meta", name)
    os.makedirs(folder, exist_ok=True)
    found = {"Name": "second", "Metadata": {}, "Endpoints": {}}
    found["Endpoints"]["docker"] = {"Host": socket_of(hosts.second), "SkipTLSVerify": False}
    write(os.path.join(folder, "meta.json"), json.dumps(found))


def second_by_wrapper(hosts):
    """An old client, which knows no contexts: what the wrapper does shows in the answer alone."""
    path = hosts.wrapper(
        '[ "$1" != context ] || { echo "docker: \'context\' is not a docker command." >&2; exit 1;'
        ' }\nDOCKER_HOST=%s exec "$real" "$@"' % socket_of(hosts.second)
    )
    return {"words": ("--docker", path)}, hosts.second.path("root")


def by_tcp(hosts):
    """The very service, but nothing proves it."""
    endpoint = "tcp://127.0.0.1:%d" % hosts.port
    return {"env": {"DOCKER_HOST": endpoint}}, endpoint


def by_ssh(hosts):
    return {"env": {"DOCKER_HOST": "ssh://root@192.0.2.1"}}, "ssh://root@192.0.2.1"


def another_hosts_name(hosts):
    rename = 'hostname elsewhere; exec "$@"'
    return {"prefix": ["unshare", "--uts", "sh", "-c", rename, "-"]}, os.uname().nodename


def a_client_elsewhere(hosts):
    """As a wrapper that goes to a copy of this host: same name, same paths, same answers."""
    path = hosts.wrapper('exec unshare --fork --pid --mount-proc "$real" "$@"')
    return {"words": ("--docker", path)}, "does not reach"


def rootless(hosts):
    edit = (
        's/"SecurityOptions":\\[/&"name=rootless",/;'
        's/"SecurityOptions":null/"SecurityOptions":["name=rootless"]/'
    )
    path = hosts.wrapper(
        'case "$*" in *info*) "$real" "$@" | sed \'%s\' ;; *) exec "$real" "$@" ;; esac' % edit
    )
    return {"words": ("--docker", path)}, "rootless"


def rootless_by_socket(hosts):
    return {"env": {"DOCKER_HOST": "unix:///run/user/1000/docker.sock"}}, "rootless"


def podman(hosts):
    path = hosts.wrapper(
        'case "$1" in version) echo "Client: Podman Engine"; echo "Version: 4.3.1" ;;\n'
        '--version) echo "podman version 4.3.1" ;;\n'
        'context) echo "Error: unrecognized command \\`podman context\\`" >&2; exit 125 ;;\n'
        '*) exec "$real" "$@" ;; esac'
    )
    return {"words": ("--docker", path)}, "podman"


ENGINES = [
    second_daemon,
    second_by_option,
    second_by_context,
    second_by_current_context,
    second_by_wrapper,
    by_tcp,
    by_ssh,
    another_hosts_name,
    a_client_elsewhere,
    rootless,
    rootless_by_socket,
    podman,
]


def error_of(run):
    return json.loads(run.out.decode())["errors"][0]["msg"]


# The proof is one for all changes; FULL=1 tries each of them before each engine.
SAMPLE = [
    (engine, change)
    for engine in ENGINES
    for change in sorted(CHANGES)
    if change == "relocate" or engine in (second_daemon, podman) or os.environ.get("FULL")
]


@pytest.mark.parametrize("engine, change", SAMPLE)
def test_refused_by_name_before_anything(hosts, engine, change):
    given, name = engine(hosts)
    before = hosts.picture()
    for mode in ("--dry-run", "-y"):
        words = (*given.get("words", ()), mode, "--json", *CHANGES[change](hosts))
        run = hosts.go(*words, prefix=given.get("prefix", ()), **given.get("env", {}))
        assert run.rc == 5 and name in error_of(run), run
        if mode == "--dry-run":
            assert json.loads(run.out.decode())["script"].endswith("exit 5\n"), run
    assert hosts.picture() == before
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(hosts.config, "config.json"))


def test_the_service_itself_is_taken_by_every_name_of_its_socket(hosts):
    """The other way round: what speaks to the service passes, whichever way it was told to."""
    link = os.path.join(hosts.lab.new_folder(), "link.sock")
    os.symlink(hosts.lab.engine.path("docker.sock"), link)
    named = "docker -H %s" % socket_of(hosts.lab.engine)
    for words, env in (
        ((), {}),
        ((), {"DOCKER_HOST": "unix://" + link}),
        (("--docker", named), {"DOCKER_HOST": socket_of(hosts.second)}),
    ):
        run = hosts.go(*(*words, "-n", "--json", "relocate", hosts.new_root()), **env)
        assert run.rc == 0, run
        calls = re.findall(r"(?m)\bdocker .*", json.loads(run.out.decode())["script"])
        docker = [call for call in calls if call.startswith("docker -") or " info" in call]
        sockets = set(re.findall(r"unix://\S+", "\n".join(docker)))
        assert sockets == {
            env.get("DOCKER_HOST") if not words and env else socket_of(hosts.lab.engine)
        }


def test_a_script_that_meets_another_engine_does_nothing(hosts):
    made = hosts.go("-n", "--json", "relocate", hosts.new_root())
    text = json.loads(made.out.decode())["script"]
    pid_file, before = hosts.lab.engine.path("pid"), hosts.picture()
    with open(pid_file) as f:
        pid = f.read()
    shutil.copy(hosts.second.path("pid"), pid_file)
    try:
        path = write(os.path.join(hosts.lab.new_folder(), "script"), text)
        done = subprocess.run(
            [*hosts.lab.engine.inside(), "sh", path],
            env=hosts.lab.engine.env(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    finally:
        with open(pid_file, "w") as f:
            f.write(pid)
    assert done.returncode == 5 and b"not the engine" in done.stderr, done
    assert hosts.picture() == before


def test_a_daemon_that_no_service_started(hosts):
    """The pid file names no process: what answers can be stopped and started by nothing here."""
    pid_file = hosts.lab.engine.path("pid")
    os.rename(pid_file, pid_file + ".away")
    try:
        before = hosts.picture()
        run = hosts.go("-y", "--json", "relocate", hosts.new_root())
    finally:
        os.rename(pid_file + ".away", pid_file)
    assert run.rc == 5 and "does not run" in error_of(run) and "dockerd (pid" in error_of(run), run
    assert hosts.picture() == before


def test_a_service_whose_main_process_is_a_supervisor(hosts):
    """The pid file names the parent of the daemon, as OpenRC writes it; of both daemons, here: one
    of them has the socket and the root."""
    pid_file = hosts.lab.engine.path("pid")
    os.rename(pid_file, pid_file + ".away")
    with open(pid_file, "w") as f:
        f.write(str(os.getpid()))
    try:
        run = hosts.go("-n", "--json", "relocate", hosts.new_root())
        assert run.rc == 0, run
        other = hosts.go(
            "-n", "--json", "relocate", hosts.new_root(), **second_daemon(hosts)[0]["env"]
        )
        assert other.rc == 5 and hosts.second.path("root") in error_of(other), other
    finally:
        os.rename(pid_file + ".away", pid_file)


def test_settings_that_name_another_root_for_the_next_start(hosts):
    path = hosts.lab.engine.path("etc", "upper", "docker", "daemon.json")
    with open(path) as f:
        text = f.read()
    with open(path, "w") as f:
        f.write(text.replace(hosts.lab.engine.path("root"), "/srv/other"))
    try:
        before = hosts.picture()
        run = hosts.go("-y", "--json", "relocate", hosts.new_root())
        assert hosts.picture() == before
    finally:
        with open(path, "w") as f:
            f.write(text)
    assert run.rc == 5 and "/srv/other" in error_of(run), run


@pytest.mark.parametrize("engine", [second_daemon, second_by_context, by_tcp, podman])
def test_what_was_begun_on_the_service_is_not_carried_on_with_another(hosts, engine):
    """Killed on the way, then `resume` and `rollback` while docker means another engine; then the
    way back, with the right one."""
    given, name = engine(hosts)
    killed = hosts.lab.dockfix_until("during", "make", "relocate", "-y", hosts.new_root())
    assert killed.returncode == -signal.SIGKILL, killed
    before = hosts.picture()
    for word in ("resume", "rollback"):
        for mode in ("--dry-run", "-y"):
            words = (*given.get("words", ()), mode, "--json", word)
            run = hosts.go(*words, **given.get("env", {}))
            assert run.rc == 7, run
            assert (socket_of(hosts.second) if "second" in engine.__name__ else name) in error_of(
                run
            )
    assert hosts.picture() == before
    done = hosts.go("-y", "rollback")
    assert done.rc == 0 and hosts.changing_calls() == before[-1], done


def test_a_finished_change_is_not_undone_with_another(hosts):
    lab, new = hosts.lab, hosts.new_root()
    done = hosts.go("-y", "relocate", new)
    assert done.rc == 0, done
    with open(hosts.calls) as f:
        calls = f.read()
    run = hosts.go("-y", "--json", "rollback", DOCKER_HOST=socket_of(hosts.second))
    assert run.rc == 5 and socket_of(hosts.second) in error_of(run), run
    with open(hosts.calls) as f:
        assert f.read() == calls
    assert lab.docker("info", "-f", "{{.DockerRootDir}}").stdout.decode().strip() == new
    assert hosts.go("-y", "rollback").rc == 0
    told = lab.docker("info", "-f", "{{.DockerRootDir}}").stdout.decode().strip()
    assert told == lab.engine.path("root") and lab.status()["web"] == "Up"


@pytest.mark.parametrize("engine", [by_tcp, a_client_elsewhere])
def test_logs_are_cut_only_where_the_files_are_the_engines(hosts, engine):
    given, name = engine(hosts)
    before = hosts.picture()
    for mode in ("--dry-run", "-y"):
        words = (*given.get("words", ()), mode, "--json", "reclaim", "--logs", "--max-log", "0K")
        run = hosts.go(*words, **given.get("env", {}))
        assert run.rc == 5 and name in error_of(run), run
    assert hosts.picture() == before


def test_logs_of_a_second_engine_are_its_own(hosts):
    lab, second = hosts.lab, hosts.second
    for engine in (lab.engine, second):
        image = engine.docker("images", "-q").stdout.decode().split()[0]
        engine.docker(
            "run", "--name", "talk", "--network", "none", image, "/bin/busybox", "seq", "9999"
        )
    try:
        logs = [
            engine.docker("inspect", "-f", "{{.LogPath}}", "talk")
            for engine in (lab.engine, second)
        ]
        logs = [one.stdout.decode().strip() for one in logs]
        sizes = [os.path.getsize(path) for path in logs]
        away = "unix://" + lab.engine.path("away.sock")
        silent = hosts.go("-y", "--json", "reclaim", "--logs", "--max-log", "1K", DOCKER_HOST=away)
        assert silent.rc == 5 and away in error_of(silent), silent
        assert [os.path.getsize(path) for path in logs] == sizes
        done = hosts.go("-y", "reclaim", "--logs", "--max-log", "1K", DOCKER_HOST=socket_of(second))
        assert done.rc == 0, done
        assert [os.path.getsize(path) for path in logs] == [sizes[0], 0] and sizes[1] > 100000
    finally:
        for engine in (lab.engine, second):
            engine.docker("rm", "-f", "talk")
