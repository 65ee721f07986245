"""A whole host for pool grow and pool recreate, in one object: systemd, dmsetup, losetup, dockerd
and its root, played by function calls.

`FakeHost.run_child` stands for dockfix.run_child.  Everything it knows is on disk (host.json, and
the records below the Docker root, which travel when the root's folders are renamed), so that a
dockfix that is killed and started anew meets what a real host would show.  Files are real: mkdir,
mv, dd, truncate, rm, test, stat and sha256sum do here what they do everywhere."""

import fnmatch
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import threading

import make_archive

POOL = "docker-7:1-%d-pool"
ENDPOINT = "unix:///var/run/docker.sock"
MAIN_PID = 1 << 30  # of the daemon: no process of this machine has it


def read(path, default=None):
    if not os.path.exists(path):
        return default
    with open(path) as f:
        return json.load(f)


def write(path, value):
    with open(path + ".new", "w") as f:
        json.dump(value, f)
    os.rename(path + ".new", path)


class FakeHost:
    def __init__(self, box, dockfix):
        self.box, self.dockfix, self.root = box, dockfix, box.at("docker")
        self.one_at_a_time = threading.Lock()
        self.config = box.at("etc", "docker", "daemon.json")
        self.no_contexts = False  # a client before 19.03
        for path in ("docker/network", "docker/volumes", "etc/docker", "run", "mapper"):
            os.makedirs(box.at(path))
        write(
            self.config,
            {
                "data-root": self.root,
                "storage-driver": "devicemapper",
                "storage-opts": ["dm.loopdatasize=64M", "dm.loopmetadatasize=8M"],
            },
        )
        write(box.at("docker/volumes/db"), {"data": "precious"})
        self.save(daemon=False, socket=True, pool=None, fail_start=0, log=[])
        self.start()
        write(
            self.root + "/image/db",
            {
                "img:1": "sha256:" + "1" * 64,
                "img:two": "sha256:" + "1" * 64,
                "other:1": "sha256:" + "2" * 64,
            },
        )
        self.containers = {}
        for number, (name, running, policy) in enumerate(
            (
                ("db", True, "always"),
                ("web", True, "unless-stopped"),
                ("old", False, "unless-stopped"),
                ("plain", True, "no"),
            )
        ):
            self.containers[name] = {
                "id": "%x" % (10 + number) * 64,
                "running": running,
                "paused": False,
                "policy": policy,
                "image": "sha256:" + "1" * 64,
                "files": "own-files-of-" + name,
                "started": True,
                "stopped": not running,
                "links": ["/db:/web/db"] if name == "web" else [],
            }
        write(self.root + "/containers/db", self.containers)

    # ---- what is on disk

    def load(self):
        return read(self.box.at("host.json"), {})

    def save(self, **more):
        write(self.box.at("host.json"), dict(self.load(), **more))

    def db(self, name):
        return read(os.path.join(self.root, name, "db"), {})

    def put(self, name, value):
        write(os.path.join(self.root, name, "db"), value)

    def driver(self):
        return read(self.config)["storage-driver"]

    # ---- the daemon

    def start(self):
        state = self.load()
        if state["daemon"] or os.path.exists(self.box.at("hold.conf")):
            return 0
        if state["fail_start"]:
            self.save(fail_start=state["fail_start"] - 1)
            return 1
        options = read(self.config)
        opts = dict(one.split("=") for one in options.get("storage-opts", []))
        if options["storage-driver"] != "devicemapper" and opts:
            return 1  # dm.* for overlay2: the daemon does not start
        for part in ("image", "containers", "buildkit", options["storage-driver"]):
            os.makedirs(os.path.join(self.root, part), exist_ok=True)
        if options["storage-driver"] == "devicemapper":
            folder = os.path.join(self.root, "devicemapper/devicemapper")
            os.makedirs(folder, exist_ok=True)
            for kind in ("data", "metadata"):
                path, size = (
                    os.path.join(folder, kind),
                    int(opts["dm.loop%ssize" % kind][:-1]) << 20,
                )
                if not os.path.exists(path) or os.path.getsize(path) < size:
                    with open(path, "ab") as f:
                        f.truncate(size)
            if not state["pool"]:
                sizes = [
                    os.path.getsize(os.path.join(folder, kind)) for kind in ("data", "metadata")
                ]
                if any(size < old for size, old in zip(sizes, read(folder + ".superblock", sizes))):
                    return 1  # dm-thin: data device too small
                write(folder + ".superblock", sizes)
                name = POOL % os.stat(os.path.join(self.root, "devicemapper")).st_ino
                self.save(
                    pool={
                        "name": name,
                        "data": sizes[0],
                        "metadata": sizes[1],
                        "loop": sizes,
                        "inactive": None,
                        "state": "ACTIVE",
                    }
                )
                open(self.box.at("mapper", name), "w").close()
        self.save(daemon=True, starts=state.get("starts", 0) + 1)
        found = self.db("containers")
        for one in found.values():
            one["running"] = one["started"] and (
                one["policy"] == "always"
                or (one["policy"] == "unless-stopped" and not one.get("stopped"))
            )
        self.put("containers", found)
        return 0

    def stop(self):
        if not self.load()["daemon"]:
            return 0
        found = self.db("containers")
        running = [name for name, one in found.items() if one["running"]]
        self.save(left_behind=self.left_behind() + running)
        self.put(
            "containers",
            {name: dict(one, running=False, paused=False) for name, one in found.items()},
        )
        self.save(daemon=False)
        return 0

    def left_behind(self):
        """Containers that ran when the daemon was stopped: it has 15 seconds for all of them
        together."""
        return self.load().get("left_behind", [])

    def boot(self):
        """A power cut: loop devices and pools go, systemd starts docker where nothing holds it.
        Others have taken the loop devices of before."""
        state = self.load()
        if state["pool"]:
            os.unlink(self.box.at("mapper", state["pool"]["name"]))
        if state["daemon"]:
            found = self.db("containers")
            self.put("containers", {name: dict(one, running=False) for name, one in found.items()})
        self.save(daemon=False, pool=None, socket=True, first_loop=state.get("first_loop", 0) + 2)
        self.start()

    def picture(self):
        """What an operator would compare before and after."""
        state, pool = self.load(), self.load()["pool"]
        return {
            "daemon": state["daemon"],
            "socket": state["socket"],
            "driver": self.driver(),
            "images": self.db("image"),
            "options": read(self.config),
            "containers": {
                name: {key: one[key] for key in ("id", "running", "policy", "files")}
                for name, one in self.db("containers").items()
            },
            "volumes": self.db("volumes"),
            "pool": pool and {key: pool[key] for key in ("data", "metadata", "state")},
            "held": os.path.exists(self.box.at("hold.conf")),
        }

    # ---- dockfix's seam

    def patch(self, module):
        real, at = module.option_sources, self.box.at
        module.option_sources = lambda: [
            one._replace(path=at(one.path.lstrip("/"))) for one in real(self.box.path)
        ]
        module.SYSTEMD_MARK, module.MAPPER, module.DROP_IN, module.MASK_DROP_IN = (
            at("run"),
            at("mapper"),
            at("drop-in.conf"),
            at("hold.conf"),
        )
        module.device_number = lambda path: "7:" + path[len("/dev/loop") :]
        module.process_is_alive = lambda pid: pid == MAIN_PID
        module.process_and_children = lambda pid: [pid]
        module.process_uses = lambda pid, root: pid == MAIN_PID and root == self.root
        module.process_listens = lambda pid, socket: pid == MAIN_PID
        module.info_by_socket = lambda host, socket: module.read_engine_info(host)
        module.run_child = self.run_child
        deed = module.run_deed
        module.run_deed = lambda host, step, tick: deed(
            host, step._replace(wait=min(step.wait, 0.3)), tick
        )
        module.sync_folder = module.os.fsync = lambda *_: None

    def run_child(self, host, argv, stdin, seconds, limit, inherit, enough=0, flow=None):
        """Programs run side by side too, but here each sees the files as the one before left
        them."""
        with self.one_at_a_time:
            return self.play(argv, stdin, flow or self.dockfix.Flow())

    def play(self, argv, stdin, flow):
        if flow.source:
            with open(flow.source, "rb") as f:
                stdin = f.read()
        rc, out = getattr(self, "do_" + argv[0])(list(argv[1:]), stdin or b"")
        out = out if isinstance(out, bytes) else out.encode()
        if flow.target and rc == 0:
            with open(flow.target + ".part", "wb") as f:
                f.write(out)
            os.rename(flow.target + ".part", flow.target)
        return self.dockfix.Answer(
            rc, out, b"" if rc == 0 else b"fake: failed", len(out), 0, 0.001, False
        )

    def do_systemctl(self, argv, stdin):
        verb, unit = argv[0], argv[-1]
        if verb == "daemon-reload" or verb == "reset-failed":
            return 0, ""
        if verb == "show":
            return 0, "MainPID=%d\n" % (MAIN_PID if self.load()["daemon"] else 0)
        if unit == "docker.socket":
            if verb == "is-active":
                return (0, "active") if self.load()["socket"] else (3, "inactive")
            self.save(socket=verb == "start")
            return 0, ""
        if verb == "is-active":
            return (0, "active") if self.load()["daemon"] else (3, "inactive")
        return (self.start() if verb == "start" else self.stop()), ""

    def do_journalctl(self, argv, stdin):
        return 0, 'level=fatal msg="the daemon\'s own words"'

    def do_sync(self, argv, stdin):
        return 0, ""

    def do_service(self, argv, stdin):
        return self.do_systemctl([argv[1], argv[0] + ".service"], stdin)

    def do_modprobe(self, argv, stdin):
        return 0, ""

    def do_dmsetup(self, argv, stdin):
        verb, pool = argv[0], self.load()["pool"]
        if not pool or (len(argv) > 1 and argv[1] != pool["name"]):
            return (0, "") if len(argv) == 1 else (1, "")
        if verb == "table":
            line = "0 %d thin-pool 7:%d 7:%d 128 32768 1 skip_block_zeroing \n" % (
                pool["data"] // 512,
                self.first_loop() + 1,
                self.first_loop(),
            )
            return 0, ("" if len(argv) > 1 else pool["name"] + ": ") + line
        if verb == "status":
            return (
                0,
                "0 %d thin-pool 4 100/%d 200/%d - rw discard_passdown queue_if_no_space - 1024\n"
                % (pool["data"] // 512, pool["metadata"] // 4096, pool["data"] // 65536),
            )
        if verb == "info":
            return 0, "Name: %s\nState:             %s\n" % (pool["name"], pool["state"])
        if verb == "reload":
            pool["inactive"] = int(argv[argv.index("--table") + 1].split()[1]) * 512
        elif verb == "clear":
            pool["inactive"] = None
        elif verb == "resume":
            if pool["inactive"] is not None:
                if pool["inactive"] < pool["data"] or pool["inactive"] > pool["loop"][0]:
                    self.save(pool=dict(pool, state="SUSPENDED", inactive=None))
                    return 1, ""
                pool.update(
                    data=pool["inactive"],
                    inactive=None,
                    metadata=min(pool["loop"][1], self.dockfix.METADATA_MAX),
                )
                write(
                    self.root + "/devicemapper/devicemapper.superblock",
                    [pool["data"], pool["metadata"]],
                )
            pool["state"] = "ACTIVE"
        self.save(pool=pool)
        return 0, ""

    def do_losetup(self, argv, stdin):
        pool, folder = self.load()["pool"], os.path.join(self.root, "devicemapper/devicemapper")
        if argv[0] == "-j":
            kind = os.path.basename(argv[1])
            mine = (
                pool
                and os.path.exists(argv[1])
                and pool["name"] == POOL % os.stat(os.path.dirname(os.path.dirname(argv[1]))).st_ino
            )
            return 0, (
                "/dev/loop%d: []: (%s)\n" % (self.first_loop() + (kind == "metadata"), argv[1])
                if mine
                else ""
            )
        number = int(argv[-1][len("/dev/loop") :]) - self.first_loop()
        if not pool or not 0 <= number < 2:
            return 1, ""  # no such device, or not attached
        pool["loop"][number] = os.path.getsize(os.path.join(folder, ("data", "metadata")[number]))
        self.save(pool=pool)
        return 0, ""

    def first_loop(self):
        return self.load().get("first_loop", 0)

    def do_find(self, argv, stdin):
        if argv[0] == "/proc":
            aside = any(
                "/.dockfix-" in word for word in argv
            )  # only the daemon's own folders are mounted
            return 0, "/proc/1/fd/5" if self.load()["daemon"] and not aside else ""
        names = (
            [] if "!" in argv else fnmatch.filter(os.listdir(argv[0]), argv[2])
        )  # only the pool is played, no container's device
        if "-exec" in argv and names:
            self.save(pool=None)
            for name in names:
                os.unlink(os.path.join(argv[0], name))
            names = []
        return 0, "\n".join(names)

    def do_cat(self, argv, stdin):
        if not argv:
            return 0, stdin
        number = int(argv[0].split("/")[3][len("loop") :]) - self.first_loop()
        return (
            (0, "%d\n" % (self.load()["pool"]["loop"][number] // 512))
            if 0 <= number < 2
            else (1, "")
        )

    # ---- coreutils

    def do_test(self, argv, stdin):
        if argv[0] == "!":
            return (
                0
                if not os.path.lexists(argv[2]) and (len(argv) < 4 or os.path.lexists(argv[5]))
                else 1
            ), ""
        held = [
            os.path.lexists(word) != (argv[max(0, at - 2)] == "!")
            for at, word in enumerate(argv)
            if word.startswith("/")
        ]
        return (0 if (any if "-o" in argv else all)(held) else 1), ""

    def do_mv(self, argv, stdin):
        if os.path.lexists(argv[2]) and os.listdir(argv[2]):
            return 1, ""
        os.rename(argv[1], argv[2])
        return 0, ""

    def do_mkdir(self, argv, stdin):
        if "-p" not in argv and os.path.exists(argv[-1]):
            return 1, ""
        os.makedirs(argv[-1], exist_ok=True)
        return 0, ""

    def do_rmdir(self, argv, stdin):
        if not os.path.isdir(argv[-1]):
            return 1, ""
        if not os.listdir(argv[-1]):
            os.rmdir(argv[-1])
        return 0, ""

    def do_rm(self, argv, stdin):
        for path in [word for word in argv if word.startswith("/")]:
            shutil.rmtree(path) if os.path.isdir(path) else os.path.exists(path) and os.unlink(path)
        return 0, ""

    def do_chmod(self, argv, stdin):
        os.chmod(argv[-1], int(argv[0], 8))
        return 0, ""

    def do_truncate(self, argv, stdin):
        os.truncate(argv[2], int(argv[1]))
        return 0, ""

    def do_dd(self, argv, stdin):
        words = dict(word.split("=", 1) for word in argv)
        with open(words["of"], "wb") as f:
            f.truncate(int(words["seek"]) << 20)
        return 0, ""

    def do_stat(self, argv, stdin):
        if argv[1] == "%m":
            return 0, "/\n"
        return (0, "%d\n" % os.path.getsize(argv[2])) if os.path.exists(argv[2]) else (1, "")

    def do_od(self, argv, stdin):
        """nr_blocks of the two space maps, as the superblock in the metadata file has them."""
        sizes = read(os.path.dirname(argv[-1]) + ".superblock")
        return 0, " %016x\n" % (
            sizes[0] // 65536 if argv[argv.index("-j") + 1] == "64" else sizes[1] // 4096
        )

    def do_echo(self, argv, stdin):
        return 0, " ".join(argv) + "\n"

    def do_sha256sum(self, argv, stdin):
        digest = hashlib.sha256(stdin).hexdigest()
        if argv[:1] == ["-c"]:
            with open(argv[1]) as f:
                return (0, "") if f.read().split()[0] == digest else (1, "")
        return 0, digest + "  -\n"

    # ---- docker

    def do_docker(self, argv, stdin):
        if argv[0] == "-H":
            assert argv[1] == ENDPOINT, argv
            argv = argv[2:]
        if argv[0] == "--version":
            return 0, "Docker version 20.10.24, build 297e128\n"
        if argv[0] == "context" and self.no_contexts:
            return 1, "docker: 'context' is not a docker command."
        if argv[0] == "context":
            return 0, ENDPOINT + "\n"
        if not self.load()["daemon"]:
            return 1, ""
        return getattr(self, "docker_" + argv[0])(argv[1:], stdin)

    def docker_version(self, argv, stdin):
        return 0, "20.10\n"

    def docker_info(self, argv, stdin):
        status = (
            []
            if self.driver() != "devicemapper"
            else [
                ["Pool Name", self.load()["pool"]["name"]],
                ["Data loop file", self.root + "/devicemapper/devicemapper/data"],
            ]
        )
        facts = {
            "ServerVersion": "20.10.24",
            "Driver": self.driver(),
            "DriverStatus": status,
            "DockerRootDir": self.root,
            "Swarm": {"LocalNodeState": self.load().get("swarm", "inactive")},
            "LiveRestoreEnabled": bool(self.load().get("live")),
            "OSType": "linux",
            "SecurityOptions": [],
            "Name": os.uname().nodename,
        }
        text = "Server:\n Storage Driver: %s\n Docker Root Dir: %s\n" % (self.driver(), self.root)
        return 0, json.dumps(facts) if argv else text

    def docker_system(self, argv, stdin):
        return 0, ""

    def document(self, name, one):
        return {
            "Id": one["id"],
            "Name": "/" + name,
            "Image": one["image"],
            "State": {
                "Running": one["running"],
                "Paused": one["paused"],
                "StartedAt": "2024" if one["started"] else "0001-01-01T00:00:00Z",
            },
            "HostConfig": dict(
                {
                    "NetworkMode": "default",
                    "Links": one["links"],
                    "LogConfig": {"Type": "json-file", "Config": {}},
                    "AutoRemove": bool(one.get("rm")),
                    "RestartPolicy": {"Name": one["policy"], "MaximumRetryCount": 0},
                }
            ),
            "Config": {
                "Image": "img:1",
                "Cmd": ["x"],
                "Hostname": one["id"][:12],
                "Env": None,
                "Labels": {},
            },
            "Mounts": [{"Type": "volume", "Name": "data", "Source": "/v", "Destination": "/srv"}],
            "NetworkSettings": {"Networks": {"bridge": {}}},
            "GraphDriver": {"Name": self.driver(), "Data": {}},
        }

    def find(self, key):
        """As docker does: by name or id, else by the beginning of an id."""
        found = self.db("containers")
        exact = [(name, one) for name, one in found.items() if key in (name, one["id"])]
        return (
            exact
            + [(name, one) for name, one in found.items() if one["id"].startswith(key)]
            + [(None, None)]
        )[0]

    def docker_ps(self, argv, stdin):
        rows = sorted(self.db("containers").items())
        if "-q" in argv:
            words = [one for option, one in zip(argv, argv[1:]) if option == "--filter"]
            return 0, "".join(
                one["id"] + "\n"
                for name, one in rows
                if one["running"] and self.fits(words, name, one)
            )
        if "{{.Names}}" in argv:
            return 0, "".join(name + "\n" for name, _ in rows)
        if "-aq" in argv:
            volume = (
                argv[argv.index("--filter") + 1].partition("=")[2] if "--filter" in argv else ""
            )
            return 0, "".join(
                one["id"] + "\n" for _, one in reversed(rows) if volume in ("", "data")
            )
        return 0, "".join(
            "%s %s %s\n" % (one["id"], name, "Up 1 hour" if one["running"] else "Exited (0)")
            for name, one in rows
        )

    @staticmethod
    def fits(filters, name, one):
        """docker's rule: one of the values of each key."""
        keys = {}
        for word in filters:
            keys.setdefault(word.partition("=")[0], []).append(word.partition("=")[2])
        holds = {
            "id": lambda value: one["id"].startswith(value),
            "name": lambda value: re.search(value, "/" + name),
            "status": lambda value: value == "paused" and one["paused"],
        }
        return all(any(holds[key](value) for value in keys[key]) for key in keys)

    def docker_images(self, argv, stdin):
        found = self.db("image")
        if "{{.ID}}" in argv[-1]:
            return 0, "".join(
                "\n" if tag.startswith("dockfix/backup") else "%s %s\n" % (tag, ident)
                for tag, ident in sorted(found.items())
            )
        return 0, "".join(
            "%s\n" % one for one in (sorted(set(found.values())) if "-q" in argv else sorted(found))
        )

    def docker_network(self, argv, stdin):
        """The bridge, which docker makes anew at each start."""
        ident = "%064x" % self.load()["starts"]
        if argv[0] == "ls":
            return 0, ident + "\n"
        if not set(argv[1:]) <= {ident, "bridge"}:
            return 1, "Error: No such network: " + argv[1]
        return 0, json.dumps(
            [
                {"Name": "bridge", "Id": ident, "Driver": "bridge", "Scope": "local"}
                for _ in argv[1:]
            ]
        )

    def docker_volume(self, argv, stdin):
        if argv[0] == "ls":
            return 0, "".join(name + "\n" for name in self.db("volumes"))
        return 0, json.dumps(
            [
                {
                    "Name": name,
                    "Driver": "local",
                    "Mountpoint": "/v",
                    "Options": None,
                    "Labels": None,
                    "Scope": "local",
                }
                for name in argv[1:]
            ]
        )

    def docker_inspect(self, argv, stdin):
        words = [
            word for word in argv if not word.startswith("-") and word not in ("container", "image")
        ]
        if "-f" in argv or "--format" in argv:
            form, key = words[0], words[1]
            name, one = self.find(key)
            ref = self.db("image").get(key)
            if "StartedAt" in form and one:
                return 0, "true\n" if not one["started"] else "false\n"
            if form == "{{.Id}}" and ref:
                return 0, ref + "\n"
            if form == "[{{.Name}}]":
                return (0, "[/%s]\n" % name) if one else (1, "\n")
            if one:
                states = {"{{.State.Running}}": "running", "{{.State.Paused}}": "paused"}
                return 0, "true\n" if one[states[form]] else "false\n"
            return 1, ""
        kind, out = argv[argv.index("--type") + 1], []
        for key in words:
            if kind == "container" and self.find(key)[0]:
                out.append(self.document(*self.find(key)))
            elif kind == "image" and (key in self.db("image") or key in self.db("image").values()):
                ident = self.db("image").get(key, key)
                out.append(
                    {
                        "Id": ident,
                        "RepoTags": [
                            tag for tag, one in sorted(self.db("image").items()) if one == ident
                        ],
                        "Config": {"Cmd": ["x"], "Env": None},
                        "Size": 1000,
                        "RepoDigests": None,
                    }
                )
            else:
                return 1, json.dumps(out)
        return 0, json.dumps(out)

    def docker_diff(self, argv, stdin):
        return 0, "A /own\n"

    def change(self, key, **more):
        found = self.db("containers")
        name, one = self.find(key)
        if one is None:
            return 1, ""
        found[name].update(more)
        self.put("containers", found)
        return 0, ""

    def docker_update(self, argv, stdin):
        codes = [self.change(key, policy=argv[0].split("=")[1])[0] for key in argv[1:]]
        return max(codes), ""

    def docker_stop(self, argv, stdin):
        return self.change(argv[0], running=False, stopped=True)

    def docker_start(self, argv, stdin):
        if argv[0] in self.load().get("broken", ()):
            return 1, ""
        return self.change(argv[0], running=True, started=True, stopped=False)

    def docker_commit(self, argv, stdin):
        self.put(
            "image",
            dict(self.db("image"), **{argv[1]: "sha256:own-" + self.find(argv[0])[1]["files"]}),
        )
        return 0, ""

    def docker_save(self, argv, stdin):
        """A whole archive; what docker_load makes of it stands in a file of its own."""
        found = self.db("image")
        if not all(ref in found for ref in argv):
            return 1, ""
        made = make_archive.Classic()
        for ref in argv:
            made.add([ref], [make_archive.layer(found[ref])])
        world = json.dumps({ref: found[ref] for ref in argv}).encode()
        return 0, make_archive.tar([*made.all_members(), ("world", world)])

    def docker_load(self, argv, stdin):
        with tarfile.open(fileobj=io.BytesIO(stdin)) as tar:
            world = json.loads(tar.extractfile("world").read().decode())
        self.put("image", dict(self.db("image"), **world))
        return 0, ""

    def docker_import(self, argv, stdin):
        self.put("image", dict(self.db("image"), **{argv[1]: "sha256:empty"}))
        return 0, ""

    def docker_tag(self, argv, stdin):
        self.put("image", dict(self.db("image"), **{argv[1]: self.db("image")[argv[0]]}))
        return 0, ""

    def docker_rmi(self, argv, stdin):
        found = self.db("image")
        return (
            self.put("image", {tag: one for tag, one in found.items() if tag != argv[0]}),
            (0, "") if argv[0] in found else (1, ""),
        )[1]

    def docker_create(self, argv, stdin):
        if argv == ["--help"]:
            return 0, "Usage: docker create\n      --pull string   Pull image before creating\n"
        words = dict(
            word[2:].split("=", 1) for word in argv if word.startswith("--") and "=" in word
        )
        found, image = self.db("containers"), next(
            word for word in argv if not word.startswith("-")
        )
        if words["name"] in found or image not in self.db("image"):
            return 1, ""
        if words["name"] == "web" and not self.find("db")[0]:
            return 1, ""  # --link to what is not there yet
        ident = self.db("image")[image]
        found[words["name"]] = {
            "id": (self.load().get("ids_begin", "") + hashlib.sha256(os.urandom(8)).hexdigest())[
                :64
            ],
            "running": False,
            "paused": False,
            "policy": words.get("restart", "no"),
            "image": ident,
            "files": ident.replace("sha256:own-", ""),
            "started": False,
            "links": ["/db:/%s/db" % words["name"]] if "link" in words else [],
        }
        self.put("containers", found)
        return 0, found[words["name"]]["id"]

    def docker_rm(self, argv, stdin):
        found, (name, _) = self.db("containers"), self.find(argv[-1])
        self.put("containers", {key: one for key, one in found.items() if key != name})
        return (0, "") if name else (1, "")

    def docker_cp(self, argv, stdin):
        return 0, "a tar of volume data"
