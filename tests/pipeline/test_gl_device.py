"""Which device `gl` and `auto` take, and what is said where there is none. Needs no OpenGL."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pipeline.commands.options import chosen_renderer
from pipeline.common import InputError
from pipeline.renderers import get_renderer, gl_context, gl_device
from pipeline.renderers.gl import GlRenderer
from pipeline.renderers.gl_context import Driver, gpu_answers, probe
from pipeline.renderers.gl_device import Device, choose
from pipeline.renderers.raster import RasterRenderer

MESA = Device(0, software=True)
# NVIDIA's EGL lists GPUs in an order of its own.
GPUS = (Device(0, False, cuda=2), Device(1, False, cuda=0), Device(2, False, cuda=1))
BOTH = (Device(0, True), Device(1, False, cuda=0))


@pytest.mark.parametrize(
    ("found", "environment", "index"),
    [
        ((MESA,), {}, 0),
        (BOTH, {}, 1),  # a GPU before the CPU, wherever it stands
        (GPUS, {}, 0),
        (GPUS, {"CUDA_VISIBLE_DEVICES": "1"}, 2),
        (GPUS, {"CUDA_VISIBLE_DEVICES": "0,1"}, 1),
        (GPUS, {"CUDA_VISIBLE_DEVICES": ""}, 0),  # how Ray marks a worker without a GPU of its own
        (GPUS, {"CUDA_VISIBLE_DEVICES": "GPU-8f1c"}, 0),
        (GPUS, {"CUDA_VISIBLE_DEVICES": "7"}, 0),
        (GPUS, {"CUDA_VISIBLE_DEVICES": "1", "EGL_DEVICE_INDEX": "0"}, 0),
        (BOTH, {"EGL_DEVICE_INDEX": "0"}, 0),  # the CPU, asked for
    ],
)
def test_choose__device(found: tuple[Device, ...], environment: dict[str, str], index: int) -> None:
    assert choose(found, environment).index == index


def test_choose__several_indices_are_spread_over_processes() -> None:
    environment = {"EGL_DEVICE_INDEX": "0, 2"}
    assert [choose(GPUS, environment, process).index for process in (10, 11, 12)] == [0, 2, 0]


@pytest.mark.parametrize("asked", ["3", "first", "0,9", "-1"])
def test_choose__unknown_index_is_an_input_error_with_the_list(asked: str) -> None:
    with pytest.raises(InputError, match=r"EGL_DEVICE_INDEX=.* 0, 1, 2"):
        choose(GPUS, {"EGL_DEVICE_INDEX": asked})


def test_choose__no_device_says_what_to_install() -> None:
    with pytest.raises(InputError, match=r"libegl1 and libgl1-mesa-dri.*--renderer raster"):
        choose(())


def test_devices__no_library_is_an_empty_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl_device, "LIBRARY", "libEGL-that-is-not-there.so.1")
    assert gl_device.devices() == ()
    monkeypatch.setattr(gl_device, "LIBRARY", "libc.so.6")  # a library without EGL in it
    assert gl_device.devices() == ()


def test_probe__no_driver_is_an_input_error_and_no_crash() -> None:
    """A machine with the EGL library, but without any driver behind it."""
    pytest.importorskip("moderngl")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.renderers.gl_context"],
        env={**os.environ, "__EGL_VENDOR_LIBRARY_FILENAMES": "/nothing.json"},
        capture_output=True,
        text=True,
        check=True,
    )
    message = json.loads(done.stdout)["error"]
    assert message.startswith("--renderer gl: ")
    assert "libegl1" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os.kill(os.getpid(), 11)", "exit code -11"),
        ("import sys; sys.exit('no such symbol')", "no such symbol"),
        ('print(\'{"error": "--renderer gl: told"}\')', "told"),
    ],
)
def test_probe__a_driver_that_crashes_is_an_input_error(
    monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    real = subprocess.run

    def run(command: list[str], **more: object) -> object:
        return real([command[0], "-c", code], **more)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(InputError, match=reason):
        probe.__wrapped__()


def test_moderngl_missing__is_an_input_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "moderngl", None)
    with pytest.raises(InputError, match=r"pip install 'mrd3d\[gl\]'"):
        GlRenderer()
    monkeypatch.setattr(gl_context, "devices", lambda: GPUS)
    assert not gpu_answers()


@pytest.mark.parametrize(
    ("found", "renderer", "expected"),
    [
        ((), "llvmpipe", False),
        ((MESA,), "llvmpipe (LLVM 15)", False),
        (BOTH, "NVIDIA H100/PCIe/SSE2", True),
        (BOTH, "llvmpipe (LLVM 15)", False),  # a display device, but the CPU draws all the same
    ],
)
def test_auto__is_gl_where_a_gpu_answers_only(
    monkeypatch: pytest.MonkeyPatch, found: tuple[Device, ...], renderer: str, expected: bool
) -> None:
    monkeypatch.setattr(gl_context, "devices", lambda: found)
    monkeypatch.setattr(gl_context, "import_moderngl", lambda: None)
    monkeypatch.setattr(gl_context, "probe", lambda: Driver("someone", renderer, "4.6"))
    assert gpu_answers() is expected


@pytest.mark.parametrize(("gpu", "name"), [(True, "gl"), (False, "raster")])
def test_auto__names_the_renderer_that_draws(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], gpu: bool, name: str
) -> None:
    if gpu:
        pytest.importorskip("moderngl")
    monkeypatch.setattr(gl_context, "gpu_answers", lambda: gpu)
    get_renderer.cache_clear()
    try:
        assert chosen_renderer("auto") == name
    finally:
        get_renderer.cache_clear()
    assert name in capsys.readouterr().err


def test_unknown_renderer__is_an_input_error_with_the_names() -> None:
    with pytest.raises(InputError, match="raster, gl, auto"):
        get_renderer("vulkan")


def test_version__changes_with_the_rasterisers() -> None:
    """The two share what precedes drawing, so that a set drawn by an older one cannot go on."""
    pytest.importorskip("moderngl")
    assert RasterRenderer().version in GlRenderer().version
