"""``evaluation serve``."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from evaluation.commands.options import DeviceOption, TeacherOption, TimeoutOption
from pipeline.common import InputError, byte_size
from pipeline.console import INPUT, MODEL, SERVER, note


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


def serve(
    index: Annotated[
        Path, typer.Option("--index", help="Folder made by `index`.", rich_help_panel=INPUT)
    ],
    shards: Annotated[
        str | None,
        typer.Option(
            "--shards",
            help="Shard set of the objects: point clouds to view, columns for conditions.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    meshes: Annotated[
        Path | None,
        typer.Option(
            "--meshes",
            "--assets",
            help="Folder with the meshes, to view and rotate them.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="The student, if it was moved.", rich_help_panel=MODEL),
    ] = None,
    teacher: TeacherOption = None,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="Address to listen on; 0.0.0.0 for all interfaces.",
            rich_help_panel=SERVER,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="Port.", rich_help_panel=SERVER)
    ] = 8000,
    max_upload: Annotated[
        str,
        typer.Option(
            "--max-upload", help="Maximum request size, e.g. 50MB.", rich_help_panel=SERVER
        ),
    ] = "50MB",
    places: Annotated[
        int,
        typer.Option(
            "--jobs",
            min=1,
            help="Concurrent requests; others are rejected.",
            rich_help_panel=SERVER,
        ),
    ] = 2,
    timeout: TimeoutOption = 20.0,
    device: DeviceOption = "auto",
) -> None:
    """Search, score and classify in a browser, or through a JSON API (/openapi.json).

    Example:

      evaluation serve --index mugs.index --shards shards/mugs --meshes meshes/
    """
    import uvicorn

    from evaluation.student import pick_device
    from evaluation.web.app import make_app
    from evaluation.web.limits import CONNECTIONS, PromptProtocol
    from evaluation.web.service import SearchService

    limit = byte_size("--max-upload", max_upload)
    service = SearchService(
        index,
        shards=shards,
        meshes=meshes,
        checkpoint=checkpoint,
        teacher=teacher,
        device=pick_device(device),
        timeout_s=timeout,
    )
    local = host in ("127.0.0.1", "localhost", "::1")
    hosts = frozenset({"localhost", "127.0.0.1", "::1"}) if local else frozenset({"*"})
    if not local:
        note(
            f"--host {host}: anyone who can reach this machine can search and upload; there is no "
            "login"
        )
    app = make_app(service, max_bytes=limit, places=places, hosts=hosts)
    shown = f"[{host}]" if ":" in host else host
    config = uvicorn.Config(
        app,
        host,
        port,
        http=PromptProtocol,
        ws="none",
        limit_concurrency=CONNECTIONS,
        log_level="warning",
        timeout_keep_alive=5,
        server_header=False,
    )
    server = uvicorn.Server(config)
    try:
        service.warm_up()  # a teacher that is not there is told before the port is open
        note(f"http://{shown}:{port} (Ctrl-C to stop)")
        with suppress(KeyboardInterrupt):  # the way to end it, and no failure
            server.run()
    except SystemExit as error:  # uvicorn's way of saying that it cannot listen
        raise InputError(f"--port {port}: cannot listen on {host}; give another one") from error
    finally:
        service.close()
    if not server.started:
        raise InputError(f"--port {port}: cannot listen on {host}; give another one")
