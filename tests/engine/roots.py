"""Roots for the time commands: programs that tell the time as different languages and C libraries
do.

Each builder returns tar bytes, or options for `docker run` that lay the host's own programs into a
Debian root; CannotRun says what is missing.  Python 3.6 and the standard library."""

import glob
import os
import shutil
import subprocess
import tempfile

from kit import ACCOUNTS, CannotRun, debian_source, make_tar, need

# `clock +%s` prints the time once, as `date` does; without arguments it prints UTC's offset ten
# times a second, and ends on SIGTERM.
CLOCK_C = r"""
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static void end(int number) { _exit(0); }

static void show(const char *form) {
    char text[256];
    time_t now = time(NULL);
    text[strftime(text, sizeof text, form, localtime(&now))] = 0;
    puts(text);
    fflush(stdout);
}

int main(int count, char **words) {
    if (count > 1) {
        show(words[1] + (words[1][0] == '+'));
        return 0;
    }
    signal(SIGTERM, end);
    for (;;) {
        show("%z");
        usleep(100000);
    }
}
"""


def compiled(compiler, source, *options):
    """Path of a program (in a directory of its own, the caller's to remove)."""
    folder = tempfile.mkdtemp(prefix="dockfix-root-")
    with open(os.path.join(folder, "source.c"), "w") as f:
        f.write(source)
    program = os.path.join(folder, "program")
    subprocess.check_call([*compiler, "-O1", "-o", program, f.name, *list(options)])
    return program


def clock_tar(libc="musl", files=None):
    """A root of one program, /bin/date, that is CLOCK_C.  libc: 'musl' (dynamic, with its loader),
    or 'static' (musl, one file)."""
    gcc = [need("musl-gcc", "musl-tools")]
    program = compiled(gcc, CLOCK_C, *(["-static"] if libc == "static" else []))
    try:
        programs = {"bin/date": program}
        if libc == "musl":
            loader = (glob.glob("/lib/ld-musl-*.so.1") or [""])[0]
            if not loader:
                raise CannotRun("needs musl's loader (Debian: apt-get install musl)")
            programs[loader.lstrip("/")] = loader
        return make_tar(dict(ACCOUNTS, **(files or {})), programs)
    finally:
        shutil.rmtree(os.path.dirname(program))


ZONE_JAVA = """
public class Zone {
    public static void main(String[] words) {
        System.out.println(
            java.time.ZoneId.systemDefault() + " " + java.time.ZonedDateTime.now().getOffset());
    }
}
"""


def java_options(folder):
    """Options that give a Debian root of the host's own suite the host's Java as /jvm, and
    /java/Zone.class (made in `folder`)."""
    java, javac = need("java", "default-jre-headless"), need("javac", "default-jdk-headless")
    home = os.path.dirname(os.path.dirname(os.path.realpath(java)))
    with open(os.path.join(folder, "Zone.java"), "w") as f:
        f.write(ZONE_JAVA)
    subprocess.check_call(
        [javac, "--release", "8", "-nowarn", "-Xlint:-options", f.name],
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )
    settings = [path for path in glob.glob("/etc/java-*")]
    return ["-v", home + ":/jvm:ro", "-v", folder + ":/java:ro"] + [
        word for path in settings for word in ("-v", "%s:%s:ro" % (path, path))
    ]


def python_options():
    """Options that give a Debian root of the host's own suite the host's own Python as
    /usr/bin/python3."""
    program = os.path.realpath("/usr/bin/python3")
    library = os.path.join("/usr/lib", os.path.basename(program))
    if not os.path.isfile(program) or not os.path.isdir(library):
        raise CannotRun("needs Debian's own Python in /usr/bin (apt-get install python3)")
    needed = subprocess.check_output(["ldd", program]).decode()
    extra = [
        word
        for word in needed.split()
        if word.startswith("/") and os.path.basename(word).startswith(("libexpat", "libz"))
    ]
    return ["-v", "%s:/usr/bin/python3:ro" % program, "-v", "%s:%s:ro" % (library, library)] + [
        word for path in extra for word in ("-v", "%s:%s:ro" % (path, path))
    ]


def other_suites():
    """The Debian releases before and after the host's own that the tests know."""
    return [suite for suite in ("bullseye", "bookworm", "trixie") if suite != debian_source()[0]]
