"""The one OpenGL context of a process: made when first drawn with, replaced when it is lost.

``moderngl`` and EGL are optional: where they are missing, ``InputError`` says what to install.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any, TypeVar

import numpy as np

from pipeline.common import InputError
from pipeline.renderers.gl_device import LIBRARY, REMEDY, choose, devices
from pipeline.renderers.raster_fragments import CUTOFF, EMISSION, N_FACTORS, NO_LIGHT
from pipeline.renderers.raster_tables import ENCODE_STEPS, LINEAR_TO_SRGB, SRGB_TO_LINEAR16
from pipeline.renderers.raster_visibility import BACK_OFFSET, DEPTH_STEP

T = TypeVar("T")

GL_VERSION = 430  # storage buffers
STORAGE_BLOCKS = 13  # that the fragment shaders read
PROBE_TIMEOUT_S = 120.0
TABLES_BLOCK = 11  # where the shaders expect the colour tables
CLIP_DISTANCE_0 = 0x3000
SOFTWARE = ("llvmpipe", "softpipe", "swrast", "software rasterizer")

# Shaders: a file for the vertices, files for the fragments, what to define.
_STAGES = {
    "solid": ("triangles.vert", ("depth.glsl", "faces.frag"), ()),
    "cutout": ("triangles.vert", ("depth.glsl", "faces.frag"), ("CUTOUT",)),
    "shade": ("screen.vert", ("shade.frag",), ()),
    "samples": ("screen.vert", ("shade.frag",), ("SAMPLES",)),
    "blend": ("triangles.vert", ("depth.glsl", "blend.frag"), ()),
    "resolve": ("screen.vert", ("resolve.frag",), ()),
}
# Columns of the shaders' table of materials: those of ``Prepared.factors``, then the textures.
_MATERIAL = {
    "CUTOFF": CUTOFF,
    "NO_LIGHT": NO_LIGHT,
    "EMISSION": EMISSION,
    "TEXTURE": N_FACTORS,
    "EMISSIVE_TEXTURE": N_FACTORS + 1,
    "MATERIAL": N_FACTORS + 2,
}


class GlError(Exception):
    """Drawing failed for a reason that lies with the context, not with the mesh."""


@dataclass(frozen=True)
class Driver:
    """What draws."""

    vendor: str
    renderer: str
    version: str

    @property
    def software(self) -> bool:
        """Whether the CPU draws."""
        return any(name in self.renderer.lower() for name in SOFTWARE)

    def __str__(self) -> str:
        return f"{self.renderer}, {self.version}"


class GlContext:
    """An OpenGL 4.3 context with the compiled shaders and the pictures to draw into.

    Raises ``InputError`` where no context can be made.
    """

    def __init__(self) -> None:
        # Mesa draws with a thread per core unless told otherwise, and a job has a process per core.
        os.environ.setdefault("LP_NUM_THREADS", "0")
        moderngl = import_moderngl()
        device = choose(devices())
        try:
            self.gl: Any = moderngl.create_context(
                standalone=True,
                require=GL_VERSION,
                backend="egl",
                # EGL hands out every entry point: libGL need not be installed.
                libgl=LIBRARY,
                libegl=LIBRARY,
                device_index=device.index,
            )
        except Exception as error:  # glcontext raises bare exceptions
            raise InputError(
                f"--renderer gl: no OpenGL {GL_VERSION / 100} context on EGL device "
                f"{device.index} ({error}); {REMEDY}"
            ) from error
        info = self.gl.info
        self.driver = Driver(info["GL_VENDOR"], info["GL_RENDERER"], info["GL_VERSION"])
        self.max_side = int(info["GL_MAX_TEXTURE_SIZE"])
        self.max_buffer = int(info["GL_MAX_SHADER_STORAGE_BLOCK_SIZE"])
        self._programs: dict[tuple[str, int], Any] = {}
        self._targets: tuple[tuple[int, int, int], dict[str, Any]] | None = None
        blocks = int(info["GL_MAX_FRAGMENT_SHADER_STORAGE_BLOCKS"])
        if blocks < STORAGE_BLOCKS:
            self.release()
            raise InputError(
                f"--renderer gl: {self.driver} has {blocks} storage blocks a shader, "
                f"{STORAGE_BLOCKS} are needed; use --renderer raster"
            )
        codes = np.zeros(ENCODE_STEPS + -ENCODE_STEPS % 4, np.uint8)
        codes[:ENCODE_STEPS] = LINEAR_TO_SRGB
        tables = SRGB_TO_LINEAR16.astype("<u4").tobytes() + codes.tobytes()
        self._tables = self.gl.buffer(tables)
        self._tables.bind_to_storage_buffer(TABLES_BLOCK)
        self.gl.enable_direct(CLIP_DISTANCE_0)

    def program(self, name: str, scale: int) -> Any:
        """A compiled pair of shaders for ``scale`` x ``scale`` samples a pixel."""
        if (name, scale) not in self._programs:
            vertex, fragments, defines = _STAGES[name]
            head = "".join(
                f"#define {define}\n"
                for define in (
                    *defines,
                    f"SCALE {scale}",
                    *(f"{column} {place}" for column, place in _MATERIAL.items()),
                    f"ENCODE_STEPS {ENCODE_STEPS}",
                    f"DEPTH_STEP {DEPTH_STEP}",
                    f"BACK_OFFSET {BACK_OFFSET}",
                )
            )
            head = "#version 430\n" + head + _shader("common.glsl")
            self._programs[name, scale] = self.gl.program(
                vertex_shader=head + _shader(vertex),
                fragment_shader=head + "".join(map(_shader, fragments)),
            )
        return self._programs[name, scale]

    def targets(self, pixels: int, scale: int, rows: int) -> dict[str, Any]:
        """Pictures to draw into: ``faces`` and ``out``; ``layers`` is added by ``layers_target``.

        ``out`` is (rows x pixels, pixels): ``rows`` views below each other. Kept for the next mesh.
        """
        key = (pixels, scale, rows)
        if self._targets is None or self._targets[0] != key:
            self._drop_targets()
            size = (pixels * scale, pixels * scale)
            made: dict[str, Any] = {}
            self._targets = (key, made)
            made["ids"] = self.gl.texture(size, 4, dtype="f1")
            made["ids"].filter = (self.gl.NEAREST, self.gl.NEAREST)
            made["depth"] = self.gl.depth_renderbuffer(size)
            made["faces"] = self.gl.framebuffer([made["ids"]], made["depth"])
            made["picture"] = self.gl.renderbuffer((pixels, pixels * rows), 4, dtype="f1")
            made["out"] = self.gl.framebuffer([made["picture"]])
        return self._targets[1]

    def layers_target(self, pixels: int, scale: int, rows: int) -> dict[str, Any]:
        """As ``targets``, with ``layers``: linear RGBA and coverage of every sample."""
        made = self.targets(pixels, scale, rows)
        if "layers" not in made:
            size = (pixels * scale, pixels * scale)
            made["values"] = self.gl.texture(size, 4, dtype="f4")
            made["values"].filter = (self.gl.NEAREST, self.gl.NEAREST)
            made["layers"] = self.gl.framebuffer([made["values"]], made["depth"])
            made["layers"].depth_mask = False  # depth is the one of ``faces``: tested, not changed
        return made

    def check(self) -> None:
        """Raise ``GlError`` where OpenGL has recorded an error."""
        error = self.gl.error
        if error != "GL_NO_ERROR":
            raise GlError(f"{error} from {self.driver}")

    def release(self) -> None:
        """Free everything. A lost context may refuse: that is no reason to fail."""
        with suppress(Exception):
            self._drop_targets()
            for program in self._programs.values():
                program.release()
            self._programs.clear()
            self._tables.release()
        with suppress(Exception):
            self.gl.release()

    def _drop_targets(self) -> None:
        targets, self._targets = self._targets, None
        for thing in reversed(list(targets[1].values()) if targets else []):
            thing.release()


def import_moderngl() -> Any:
    """The package, or an ``InputError`` that says how to get it."""
    try:
        import moderngl
    except ImportError as error:
        raise InputError(
            f"--renderer gl: moderngl cannot be imported ({error}); "
            "pip install 'mrd3d[gl]', or use --renderer raster"
        ) from error
    return moderngl


@cache
def _shader(name: str) -> str:
    return resources.files("pipeline.renderers").joinpath("gl_shaders", name).read_text()


class _GlThread(threading.Thread):
    """The thread that a context belongs to: OpenGL draws for one thread, callers may be many."""

    def __init__(self) -> None:
        super().__init__(name="gl", daemon=True)
        self.process = os.getpid()
        self._queue: queue.SimpleQueue[tuple[Callable[[GlContext], Any] | None, Future[Any]]]
        self._queue = queue.SimpleQueue()
        self.start()

    def do(self, function: Callable[[GlContext], Any] | None) -> Any:
        """Call ``function`` with the context, made if need be; None: free the context."""
        future: Future[Any] = Future()
        self._queue.put((function, future))
        return future.result()

    def run(self) -> None:
        """Serve calls until the process ends."""
        context: GlContext | None = None
        while True:
            function, future = self._queue.get()
            try:
                if function is None:
                    mine, context = context, None
                    if mine is not None:
                        mine.release()
                    future.set_result(None)
                else:
                    context = context or GlContext()
                    future.set_result(function(context))
            except BaseException as error:
                future.set_exception(error)
            del function, future  # else the last mesh stays in memory until the next


_lock = threading.Lock()
_thread: _GlThread | None = None


def with_context(function: Callable[[GlContext], T]) -> T:
    """Call ``function`` with the context of this process, on the context's own thread.

    Raises ``InputError`` where no context can be made, and whatever ``function`` raises.
    """
    global _thread
    with _lock:
        # A forked child has a copy of the object, but not its thread.
        if _thread is None or _thread.process != os.getpid():
            _thread = _GlThread()
            atexit.register(discard_context)
        thread = _thread
    result: T = thread.do(function)
    return result


def discard_context() -> None:
    """Free the context of this process; the next use makes a new one."""
    thread = _thread
    if thread is not None and thread.process == os.getpid():
        thread.do(None)


@cache
def probe() -> Driver:
    """The driver that draws here, found out in a process of its own: a bad one may crash.

    Takes about a second, once per process. Raises ``InputError`` where none works.
    """
    command = [sys.executable, "-m", "pipeline.renderers.gl_context"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"--renderer gl: the graphics driver did not answer in {PROBE_TIMEOUT_S:g} s; {REMEDY}"
        ) from error
    lines = done.stdout.splitlines()
    answer = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    if "error" in answer:
        raise InputError(answer["error"])
    if done.returncode or not answer:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(
            f"--renderer gl: the graphics driver failed in a trial (exit code {done.returncode}: "
            f"{last}); {REMEDY}"
        )
    return Driver(**answer)


def gpu_answers() -> bool:
    """Whether a GPU can draw here: moderngl is installed, EGL lists a GPU, and a trial succeeds."""
    if all(device.software for device in devices()):
        return False
    try:
        import_moderngl()
        return not probe().software
    except InputError:
        return False


def main() -> None:
    """Try the driver and print what it is, or why it cannot be used, as a line of JSON."""
    from pipeline.renderers.gl import self_test

    try:
        answer: dict[str, str] = asdict(self_test())
    except InputError as error:
        answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
