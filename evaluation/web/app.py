"""The JSON API of the search page, and the page itself.

FastAPI, since it writes the OpenAPI description (``/openapi.json``) from the types; the page is
three static files of ours and three.js. Nothing is fetched from elsewhere.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar

from anyio import CapacityLimiter, fail_after, to_thread
from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from evaluation.queries import Part
from evaluation.web.limits import BusyError, Gate, Guard
from evaluation.web.service import MAX_HITS, SearchService, UnknownObjectError, checked_text
from pipeline.common import InputError

T = TypeVar("T")
SHAPES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off", ".npz")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
# A page asks for many pictures at once: they are drawn in turn, not refused.
PATIENCE_S = 20.0
CACHED = {"Cache-Control": "private, max-age=3600"}


class Info(BaseModel):
    """What is served."""

    name: str
    objects: int
    model: str
    teacher: str
    shapes: bool  # whether shapes can ask
    viewer: bool  # whether there are shapes to turn
    categories: dict[str, int]  # objects by category
    columns: list[str]  # that a condition may name


class HitModel(BaseModel):
    """One object that was found; ``score`` is a cosine."""

    rank: int
    score: float
    row: int
    uid: str
    category: str | None
    texts: list[str]
    source: str
    viewer: str | None  # mesh, cloud, or nothing


class Hits(BaseModel):
    """The answer to a query, best first."""

    hits: list[HitModel]


class ClassShare(BaseModel):
    """A class and its probability among those that were asked for."""

    name: str
    probability: float
    cosine: float


class Classes(BaseModel):
    """Classes, most probable first."""

    classes: list[ClassShare]


class Problem(BaseModel):
    """What was wrong with a request."""

    error: str


RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "Something given is wrong"},
    403: {"model": Problem, "description": "Asked from another site"},
    404: {"model": Problem, "description": "No such object"},
    413: {"model": Problem, "description": "Too large"},
    503: {"model": Problem, "description": "Busy"},
}


def make_app(
    service: SearchService,
    *,
    max_bytes: int = 50_000_000,
    places: int = 2,
    hosts: frozenset[str] = frozenset({"localhost", "127.0.0.1", "::1"}),
) -> FastAPI:
    """The application. ``places`` is how many requests may work at once; others are told so.

    Requests with a mesh or a cloud, which may take long, have as many places of their own; so have
    pictures and clouds of objects, which wait for one.
    """
    app = FastAPI(
        title="mrd3d search",
        description="Search 3D shapes by text, picture or shape; score and classify meshes.",
        docs_url=None,  # its page comes from a CDN
        redoc_url=None,
        responses=RESPONSES,
    )
    gate, shapes = Gate(places), Gate(places)

    async def work(task: Callable[[], T], gate: Gate) -> T:
        """Do something that takes a core, if there is a place for it."""
        with gate.place():
            return await to_thread.run_sync(task)

    drawing = CapacityLimiter(places)

    async def in_turn(task: Callable[[], T]) -> T:
        """Do something short once there is a place for it; ``BusyError`` after a long wait."""
        try:
            with fail_after(PATIENCE_S):
                return await to_thread.run_sync(task, limiter=drawing)
        except TimeoutError:
            raise BusyError from None

    @app.get("/api/info")
    def info() -> Info:
        """What is served, and what can be asked."""
        return Info(**service.info())

    @app.post("/api/search")
    async def search(
        text: Annotated[str, Form(description="Text to look for.")] = "",
        minus: Annotated[str, Form(description="Text to steer away from.")] = "",
        like: Annotated[
            int | None, Form(description="Row of an object to find similar ones to.")
        ] = None,
        category: Annotated[str, Form(description="Only objects of this category.")] = "",
        where: Annotated[str, Form(description="SQL condition on the columns.")] = "",
        k: Annotated[int, Form(ge=1, le=MAX_HITS)] = 24,
        image: Annotated[UploadFile | None, File(description="Picture.")] = None,
        shape: Annotated[UploadFile | None, File(description="Mesh or .npz cloud.")] = None,
    ) -> Hits:
        """Ranked objects for words, a picture, a shape, an object, or several of them."""
        with tempfile.TemporaryDirectory() as folder:
            parts = []
            if text.strip():
                parts.append(Part("text", checked_text(text)))
            if image is not None and image.filename:
                path = await keep(image, Path(folder) / "picture", PICTURES)
                parts.append(Part("image", str(path)))
            if shape is not None and shape.filename:
                path = await keep(shape, Path(folder) / "shape", SHAPES)
                parts.append(Part("shape", str(path)))
            if minus.strip():
                parts.append(Part("text", checked_text(minus), -1.0))
                if len(parts) == 1 and like is None:
                    raise InputError("say what to look for, not only what to avoid")
            found = await work(
                lambda: service.search(
                    parts, like=like, category=category or None, where=where or None, k=k
                ),
                shapes if any(part.kind == "shape" for part in parts) else gate,
            )
        return Hits(hits=[HitModel(**hit) for hit in found])

    @app.post("/api/score")
    async def score(
        mesh: Annotated[UploadFile, File(description="Mesh.")],
        text: Annotated[str, Form(description="Text that it should match.")],
    ) -> dict[str, Any]:
        """How well a mesh shows a text: see `evaluation score`."""
        with tempfile.TemporaryDirectory() as folder:
            path = await keep(mesh, Path(folder) / "mesh", SHAPES[:-1])
            return await work(lambda: service.score(path, text), shapes)

    @app.post("/api/classify")
    async def classify(
        shape: Annotated[UploadFile, File(description="Mesh or .npz cloud.")],
        classes: Annotated[str, Form(description="Names of classes, one per line.")],
    ) -> Classes:
        """Probabilities of the classes that are named."""
        with tempfile.TemporaryDirectory() as folder:
            path = await keep(shape, Path(folder) / "shape", SHAPES)
            found = await work(lambda: service.classify(path, classes.splitlines()), shapes)
        return Classes(classes=[ClassShare(**one) for one in found])

    @app.get("/api/objects/{row}/picture.png", response_class=Response)
    async def picture(row: int) -> Response:
        """A picture of an object."""
        content = await in_turn(lambda: service.picture(row))
        return Response(content, media_type="image/png", headers=CACHED)

    @app.get("/api/objects/{row}/cloud.bin", response_class=Response)
    async def cloud(row: int) -> Response:
        """Points of an object: n as int32, n x 3 float32, n x 3 bytes; little-endian."""
        content = await in_turn(lambda: service.cloud(row))
        return Response(content, media_type="application/octet-stream", headers=CACHED)

    @app.get("/api/objects/{row}/model.glb", response_class=FileResponse)
    def model(row: int) -> FileResponse:
        """The mesh of an object."""
        return FileResponse(service.model(row), media_type="model/gltf-binary", headers=CACHED)

    static = Path(str(files("evaluation.web") / "static"))

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(static / "index.html")

    app.mount("/static", StaticFiles(directory=static), name="static")

    def told(error: Exception, status: int) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status)

    @app.exception_handler(InputError)
    async def wrong(_: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"error": plain(str(error))}, 400)

    @app.exception_handler(UnknownObjectError)
    async def unknown(_: Request, error: UnknownObjectError) -> JSONResponse:
        return told(error, 404)

    @app.exception_handler(BusyError)
    async def busy(_: Request, __: BusyError) -> JSONResponse:
        message = "busy with other requests: try again in a moment"
        return JSONResponse({"error": message}, 503, headers={"Retry-After": "2"})

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        return JSONResponse({"error": f"{place}: {first['msg']}"}, 400)

    app.add_middleware(Guard, max_bytes=max_bytes, hosts=hosts)
    return app


async def keep(upload: UploadFile, path: Path, endings: tuple[str, ...]) -> Path:
    """Write an upload to ``path`` with its own ending; its name is used for nothing else.

    Raises ``InputError`` for an ending that is not one of ``endings``, or an empty file.
    """
    ending = Path(upload.filename or "").suffix.lower()
    if ending not in endings:
        raise InputError(f"a file of type {ending or 'unknown'}: give {', '.join(endings)}")
    path = path.with_suffix(ending)
    with path.open("wb") as file:
        while chunk := await upload.read(1 << 20):
            file.write(chunk)
    if not path.stat().st_size:
        raise InputError("the file is empty: give another one")
    return path


def plain(message: str) -> str:
    """A message without the folder in which an upload was kept."""
    folder = tempfile.gettempdir()
    words = [
        word.rsplit("/", 1)[-1] if word.startswith(folder) else word for word in message.split()
    ]
    return " ".join(words)
