"""build_dist.py [DIR]: writes dockfix.py, dockfix.pyz and SHA256SUMS to DIR (default: dist).

The archive is written by hand because zipapp's differs from build to build: one uncompressed member
with a fixed date and mode gives the same bytes under every Python.  Its __main__.py is dockfix.py,
so that the exit code is dockfix's own."""

import hashlib
import io
import os
import sys
import zipfile

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def pyz(source):
    """The bytes of a runnable archive that holds nothing but this source."""
    out = io.BytesIO()
    out.write(b"#!/usr/bin/env python3\n")
    member = zipfile.ZipInfo("__main__.py", (1980, 1, 1, 0, 0, 0))
    member.create_system, member.external_attr, member.compress_type = (
        3,
        0o100644 << 16,
        zipfile.ZIP_STORED,
    )
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(member, source)
    return out.getvalue()


def write(path, data, mode):
    with open(path, "wb") as f:
        f.write(data)
    os.chmod(path, mode)


def main(directory):
    with open(os.path.join(TOP, "dockfix.py"), "rb") as f:
        source = f.read()
    os.makedirs(directory, exist_ok=True)
    sums = ""
    for name, data in (("dockfix.py", source), ("dockfix.pyz", pyz(source))):
        write(os.path.join(directory, name), data, 0o755)
        sums += "%s  %s\n" % (hashlib.sha256(data).hexdigest(), name)
    write(os.path.join(directory, "SHA256SUMS"), sums.encode(), 0o644)
    print(sums, end="")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else os.path.join(TOP, "dist"))
