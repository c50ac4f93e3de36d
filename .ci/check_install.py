"""Says what an installed nerf is, and fails when it is not what was expected. Run it outside the repository's folder.

python .ci/check_install.py --backend cpu|reference [--editable]     with torch
python .ci/check_install.py --libraries-only                         without: loads every library with ctypes
"""

import argparse
import ctypes
import importlib.util
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--backend", choices=("cpu", "reference"))
parser.add_argument("--editable", action="store_true")
parser.add_argument("--libraries-only", action="store_true")
arguments = parser.parse_args()

started = time.perf_counter()
import nerf  # noqa: E402

seconds = time.perf_counter() - started
package = Path(nerf.__file__).parent
root = Path(__file__).resolve().parent.parent
assert "torch" not in sys.modules, "`import nerf` imported torch"
assert (package.parent == root) == arguments.editable, f"nerf came from {package}"
version = sys.version.split()[0]
print(f"nerf {nerf.__version__} on Python {version} from {package.parent.name}, imported in {seconds:.3f} s")

spec = importlib.util.spec_from_file_location("nerf_kernels_build", package / "kernels" / "build.py")
assert spec is not None and spec.loader is not None
build = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = build
spec.loader.exec_module(build)
libraries = sorted((package / "kernels" / "lib").glob("*.so"))

if arguments.libraries_only:
    assert libraries, "the wheel holds no libraries"
    for path in libraries:
        library = ctypes.CDLL(str(path))
        library.nerf_source_hash.restype = ctypes.c_char_p
        found = library.nerf_source_hash().decode()
        assert found == build.source_hash(), f"{path.name} holds {found}, the sources are {build.source_hash()}"
    print(f"loaded {', '.join(path.name for path in libraries)}")
else:
    from nerf import kernels

    assert bool(libraries) == (arguments.backend == "cpu"), f"libraries: {[path.name for path in libraries]}"
    assert kernels.backend() == arguments.backend, f"backend {kernels.backend()}: {kernels.describe()}"
    print(f"backend {kernels.backend()}: {kernels.describe()}")
