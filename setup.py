"""Builds the CPU kernels (see nerf/kernels/build.py); everything else is in pyproject.toml.

The libraries are plain C and are loaded with ctypes, so one wheel serves every Python: it is tagged py3-none-PLATFORM,
or py3-none-any where nothing could be compiled. Without a compiler the install still succeeds.
"""

import importlib.util
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
INSIDE = Path("nerf/kernels/lib")


def compile_kernels(output):
    # by path: importing the package here would ask for numpy and torch, which an isolated build does not have
    spec = importlib.util.spec_from_file_location("nerf_kernels_build", ROOT / "nerf/kernels/build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.build(output)


class BuildKernels(build_ext):
    """Compiles into build_lib, or into the source tree for an editable install. A failure is told, never fatal."""

    built = ()  # paths of the libraries

    def run(self):
        output = ROOT / INSIDE if self.inplace else Path(self.build_lib).resolve() / INSIDE
        if not self.inplace:
            shutil.rmtree(output, ignore_errors=True)  # libraries of an earlier build must not ride along
        report = compile_kernels(output)
        for name, error in report.failed.items():
            print(f"nerf: the {name} kernels did not compile:\n{error}", file=sys.stderr)
        print(f"nerf: {report.summary()}", file=sys.stderr)
        self.built = tuple(report.built.values())
        if not self.built:
            self.distribution.ext_modules = None  # from here on this is a pure distribution

    def get_outputs(self):
        return [str(path) for path in self.built]

    def get_output_mapping(self):
        return {}  # in editable mode the libraries are already where they are used

    def get_source_files(self):
        return []  # MANIFEST.in names them all, headers included


class PlatformWheel(bdist_wheel):
    """A wheel for every Python 3 of one platform, or of any platform when it holds no library."""

    def run(self):
        build_lib = (ROOT / self.get_finalized_command("build").build_lib).resolve()
        if ROOT / "build" in build_lib.parents:
            shutil.rmtree(build_lib, ignore_errors=True)  # modules deleted since an earlier build must not ride along
        super().run()

    def compiled(self):
        return bool(self.get_finalized_command("build_ext").built)

    # asked for before and after the build, and only the build knows
    root_is_pure = property(lambda self: not self.compiled(), lambda self, value: None)

    def get_tag(self):
        if not self.compiled():
            return "py3", "none", "any"
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("nerf.kernels.lib", sources=[])],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
)
