"""Fails unless two wheels hold the same files, but for compiled libraries: `python .ci/same_files.py A.whl B.whl`."""

import sys
import zipfile

MADE = ("RECORD", "WHEEL", ".so")  # lists of what is in it, its platform, and what was compiled

contents = []
for path in sys.argv[1:3]:
    with zipfile.ZipFile(path) as wheel:
        contents.append({info.filename: info.CRC for info in wheel.infolist() if not info.filename.endswith(MADE)})
first, second = contents
for name in sorted(first.keys() ^ second.keys()):
    print(f"only in {sys.argv[1] if name in first else sys.argv[2]}: {name}")
different = [name for name in first.keys() & second.keys() if first[name] != second[name]]
print(f"{len(first)} and {len(second)} files; different: {sorted(different) or 'none'}")
sys.exit(first.keys() != second.keys() or bool(different))
