"""`storage` on real engines, overlay2 and vfs: every figure against du, df and what docker itself
lists; as root, as a user who may speak to docker, as nobody, and with the daemon stopped."""

import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

import pytest

from conftest import Lab, not_here
from common import PROGRAM, du, wait_until
from kit import CannotRun, PrivateEngine

MIB = 1 << 20


class House:
    """Containers in every state, volumes that are used and not, images with a name, without one,
    and unused; all with files of a known size."""

    def __init__(self, engine, folder, driver):
        self.engine, self.lab, self.driver = engine, Lab(engine, folder), driver
        self.image = self.lab.image("busybox")
        engine.import_busybox("house/unused:1", files={"x": "unused"})
        for text in ("old", "new"):
            engine.import_busybox(
                "house/renamed", files={"x": text}
            )  # the first of the two is left without a name
        write = (
            "dd if=/dev/urandom of=/own bs=1024 count=%d; dd if=/dev/urandom of=/data/f bs=1024"
            " count=%d; yes house | head -n 20000; exec sleep 1000"
        )
        for number, name in enumerate(("up", "paused", "down")):
            engine.run(
                self.image,
                "--name",
                name,
                "-v",
                "vol-%s:/data" % name,
                "--log-opt",
                "max-size=%dm" % (number + 1),
                command=("/bin/sh", "-c", write % (3000 * number + 500, 1000 * number + 100)),
            )
        engine.run(self.image, "--name", "growing", command=("/bin/sleep", "1000"))
        engine.create("house/renamed", "--name", "created")
        engine.docker("volume", "create", "vol-free")
        for name in ("up", "paused", "down"):  # all is written when the sleep runs
            engine.docker(
                "exec", name, "/bin/sh", "-c", "until [ $(pidof sleep) ]; do sleep .1; done"
            )
        engine.docker("pause", "paused")
        engine.docker("kill", "down")
        os.sync()

    def storage(self, *args, **how):
        run = self.lab.dockfix("storage", "--json", *args, **how)
        doc = json.loads(run.out.decode("ascii"))
        assert doc["exit_code"] == run.rc and b"Traceback" not in run.err
        return run.rc, (doc["results"] or [None])[0], {one["id"]: one for one in doc["findings"]}

    def words(self, *args):
        return self.engine.docker(*args).stdout.decode().split()

    def inspect(self, *names):
        return json.loads(self.engine.docker("inspect", *names).stdout.decode())

    def at(self, *parts):
        return os.path.join(self.engine.root, *parts)

    def own_layers(self, container):
        """A container's two layers, by the engine's own records."""
        found = []
        for name in ("mount-id", "init-id"):
            with open(self.at("image", self.driver, "layerdb", "mounts", container, name)) as f:
                found.append(
                    self.at("overlay2", f.read().strip(), "diff")
                    if self.driver == "overlay2"
                    else self.at("vfs", "dir", f.read().strip())
                )
        return found


@pytest.fixture(scope="module", params=["overlay2", "vfs"])
def house(request):
    folder, private = os.path.realpath(tempfile.mkdtemp(prefix="dockfix-lab-")), PrivateEngine(
        extra=["--storage-driver", request.param]
    )
    try:
        private.start()
        yield House(private, folder, request.param)
    except CannotRun as reason:
        not_here(reason)
    finally:
        private.stop()
        shutil.rmtree(folder)


def test_every_figure_has_a_second_opinion(house):
    code, one, found = house.storage()
    usage = one["usage"]
    assert (
        code == 0
        and one["driver"] == house.driver
        and one["root"] == house.engine.root
        and one["missing"] == []
    )
    assert one["server_version"] == house.words("version", "--format", "{{.Server.Version}}")[0]
    everything = {row["Id"]: row for row in house.inspect(*house.words("ps", "-aq"))}
    assert {row["id"]: row["size"] for row in usage["containers"]["rows"]} == {
        name: du(*house.own_layers(name)) for name in everything
    }
    assert {row["id"] for row in usage["stopped_containers"]["rows"]} == set(
        house.words("ps", "-aq", "--no-trunc", "-f", "status=exited", "-f", "status=created")
    )
    logs = {row["id"]: row["size"] for row in usage["logs"]["rows"]}
    assert (
        logs
        == {
            name: du(*glob.glob(row["LogPath"] + "*")) if os.path.exists(row["LogPath"]) else 0
            for name, row in everything.items()
        }
        and max(logs.values()) > 500000
    )
    assert {row["name"]: row["rotated"] for row in usage["logs"]["rows"]} == {
        "up": True,
        "paused": True,
        "down": True,
        "growing": False,
        "created": False,
    }
    assert {row["name"]: row["size"] for row in usage["volumes"]["rows"]} == {
        name: du(house.at("volumes", name)) for name in house.words("volume", "ls", "-q")
    }
    assert (
        [row["name"] for row in usage["unused_volumes"]["rows"]]
        == house.words("volume", "ls", "-qf", "dangling=true")
        == ["vol-free"]
    )
    assert usage["images"]["count"] == len(set(house.words("images", "-aq")))
    assert {row["id"][:12] for row in usage["dangling_images"]["rows"]} == set(
        house.words("images", "-qf", "dangling=true")
    )
    assert [row["tags"] for row in usage["unused_images"]["rows"]] == [["house/unused:1"]]
    assert usage["orphans"]["count"] == 0 and all(part["complete"] for part in usage.values())
    assert {
        "stopped-containers",
        "dangling-images",
        "unused-images",
        "unused-volumes",
        "driver-" + house.driver,
    } <= set(found)


def test_images_against_docker_system_df(house):
    _, one, _ = house.storage()
    listed = house.engine.docker("system", "df", "-v").stdout.decode()
    table = listed[listed.index("REPOSITORY") : listed.index("Containers space usage")]
    unique = {
        re.search(r" ([0-9a-f]{12}) ", line).group(1): float(re.findall(r" ([0-9.]+)MB ", line)[-1])
        for line in table.splitlines()[1:]
        if line.strip()
    }
    rows = {row["id"][:12]: row["size"] for row in one["usage"]["images"]["rows"]}
    assert set(rows) == set(unique) and len(rows) >= 4
    for image, size in rows.items():
        if house.driver == "overlay2":
            assert abs(size / 1e6 - unique[image]) < 0.011, image
        else:  # what it takes on the disk: a whole copy, in blocks
            assert unique[image] * 0.99 < size / 1e6 < unique[image] * 1.2, image


def test_the_disk_as_df_has_it(house):
    def df():
        return (
            subprocess.check_output(
                ["df", "--block-size=1", "--output=size,avail,pcent,fstype", house.engine.root]
            )
            .decode()
            .replace("%", "")
            .splitlines()[1]
            .split()
        )

    before, (_, one, _), after = df(), house.storage("--quick"), df()  # others write meanwhile
    assert one["disk"]["total"] == int(before[0]) and one["disk"]["filesystem"] == before[3]
    for key, at, slack in (("free", 1, 200 * MIB), ("used_percent", 2, 1)):
        least, most = sorted((int(before[at]), int(after[at])))
        assert least - slack <= one["disk"][key] <= most + slack


def test_the_options_of_this_very_daemon(house):
    _, one, _ = house.storage("--quick")
    named = {(row["option"], row["value"]) for row in one["options"]}
    assert {
        ("storage-driver", house.driver),
        ("data-root", house.engine.path("root")),
    } <= named and all("/proc/" in row["where"] for row in one["options"])


def test_one_docker_call_and_no_walk_with_quick(house):
    recorder = house.lab.recorder()
    _, one, _ = house.storage("--quick", recorder=recorder)
    assert [call.argv[0] for call in recorder.calls()] == ["info"]
    assert (
        one["usage"]["containers"]["size"] is None
        and one["usage"]["containers"]["count"] == 5
        and one["usage"]["logs"]["size"] > 0
    )
    assert one["usage"]["volumes"]["size"] is None and one["usage"]["volumes"]["count"] == 4


def test_for_people(house):
    run = house.lab.dockfix("storage")
    assert run.rc == 0 and run.err == b"" and "%s, engine " % house.driver in run.text
    assert re.search(r"(?m)^down +\d+\.\d MiB$", run.text) and re.search(
        r"(?m)^vol-down +\d+\.\d MiB$", run.text
    )


def as_nobody(house, *args):
    """dockfix from a place that anybody may read, as a user without any right to Docker's root."""
    copy = os.path.join(house.lab.folder, "dockfix.py")
    shutil.copy(PROGRAM, copy)
    os.chmod(house.lab.folder, 0o755)
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    python = next(
        (
            one
            for one in (sys.executable, "/usr/bin/python3")
            if subprocess.run([*user, one, "-c", ""], stderr=subprocess.DEVNULL).returncode == 0
        ),
        None,
    )
    if python is None:
        pytest.skip("there is no Python that every user may run")
    argv = [
        *user,
        python,
        "-B",
        copy,
        "--state",
        os.path.join(house.lab.folder, "none"),
        "storage",
        "--json",
    ]
    done = subprocess.run(
        argv + list(args),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=house.engine.env(DOCKER_CONFIG=house.lab.folder),
        timeout=60,
    )
    doc = json.loads(done.stdout.decode("ascii"))
    assert doc["exit_code"] == done.returncode and b"Traceback" not in done.stderr
    return (
        done.returncode,
        (doc["results"] or [None])[0],
        {one["id"]: one for one in doc["findings"]},
    )


def test_a_user_who_may_speak_to_docker_but_not_read_its_root(house):
    socket = house.engine.path("docker.sock")
    os.chmod(socket, 0o666)
    try:
        code, one, found = as_nobody(house)
    finally:
        os.chmod(socket, 0o660)
    usage = one["usage"]
    assert code == 0 and one["driver"] == house.driver and one["disk"]["total"] > 0
    assert (usage["containers"]["count"], usage["stopped_containers"]["count"]) == (5, 2) and usage[
        "images"
    ]["count"] >= 4
    assert (
        all(part["size"] is None for part in usage.values())
        and "cannot be read" in found["not-known"]["text"]
        and "sudo" in found["not-known"]["remedy"]
    )


def test_nobody(house):
    code, one, found = as_nobody(house, "--root", house.engine.root)
    assert (
        code == 0
        and one["disk"]["total"] > 0
        and one["sources"]["driver"] == "configuration"
        and all(part["size"] is None for part in one["usage"].values())
        and "not-known" in found
    )
    code, one, found = as_nobody(house)
    assert (
        "engine-silent" in found
        and "permission" in found["engine-silent"]["text"].lower()
        and (code == 0 or (code, one) == (6, None))
    )


def test_containers_that_go_while_it_looks(house):
    names = [house.engine.create(house.image, "--name", "brief%d" % n) for n in range(6)]
    gone = subprocess.Popen(
        [house.engine.client, "rm", "-f", *names], env=house.engine.env(), stdout=subprocess.DEVNULL
    )
    for _ in range(3):
        code, one, _ = house.storage()
        assert code == 0 and one["usage"]["containers"]["count"] >= 5
    assert gone.wait() == 0


def test_with_the_daemon_stopped_the_files_tell_the_same(house):
    """Comes last: the engine does not come back."""
    before = house.storage()[1]
    house.engine.docker("unpause", "paused")
    house.engine.kill_containers()
    house.engine.end(house.engine.processes[1])
    code, one, found = house.storage("--root", house.engine.root)
    assert (
        code == 0
        and one["driver"] == house.driver
        and one["sources"]["driver"] == "the containers' files"
        and one["server_version"] is None
    )
    for kind in ("containers", "volumes", "images", "unused_volumes", "dangling_images", "orphans"):
        assert one["usage"][kind] == dict(
            before["usage"][kind], rows=one["usage"][kind]["rows"]
        ), kind
    code, one, found = house.storage()
    assert "engine-silent" in found and (code == 0 or (code, one) == (6, None))


IMPOSTOR = """
up=$(sed -n "s/.*upperdir=\\([^,]*\\).*/\\1/p" /proc/self/mountinfo | head -1)
root=${up%/overlay2/*}
mkfifo /trap; printf '{"storage-opts": ["dm.basesize=1G"], "data-root": "%s"}' "$root" > /lie
: > /ready
exec -a dockerd bash -c "while :; do sleep 1000; done" --config-file=$up/FILE --data-root=$root
"""


@pytest.mark.parametrize("file", ["trap", "lie"])
@pytest.mark.parametrize("options", [[], ["--pid", "host"]], ids=["own pids", "host's pids"])
def test_a_program_in_a_container_that_calls_itself_dockerd_is_not_believed(lab, options, file):
    """It names a fifo, which would hold dockfix for ever, or settings that are not the daemon's."""
    before = storage_facts(lab)
    lab.run("impostor", *options, command=("bash", "-c", IMPOSTOR.replace("FILE", file)))
    try:
        wait_until(lambda: lab.shadow("impostor", "/ready") is not None, "the impostor")
        wait_until(lambda: calls_itself_dockerd(lab, "impostor"), "its name")
        assert storage_facts(lab) == before
    finally:
        lab.docker("rm", "-f", "impostor")


def calls_itself_dockerd(lab, name):
    with open("/proc/%d/cmdline" % lab.pid(name), "rb") as f:
        return f.read().startswith(b"dockerd\0")


def storage_facts(lab):
    """Options and findings, but whether some image is unused, which a new container changes. A run
    that waits on a fifo ends with the test's own time."""
    doc = lab.dockfix("storage", "--quick", "--json", timeout=60).doc
    findings = [one["id"] for one in doc["findings"] if one["id"] != "unused-images"]
    return doc["results"][0]["options"], findings
