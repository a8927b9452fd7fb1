"""What raw texts of model sites hold that says nothing of the object: phrases, words, tags.

The rules are few and meet whole phrases: a word that may describe an object (``low poly``,
``stylised``, ``scan``) stays in captions. In names such a phrase goes from the ends only; as a tag
on its own it goes too (``NOISE_TAGS``).
"""

from __future__ import annotations

import re

# Names that say that there is a file, not what is in it.
GENERIC_NAMES = frozenset(
    """
    model models mesh meshes scene untitled object objects obj asset assets file files textured
    texture textures base default normalized normalised simplified export exported output part
    glb gltf ply stl off dae fbx data dataset raw source sources geometry result sample item items
    root node 3d train val valid validation test
    """.split()  # noqa: SIM905 (as a list it would take fifty lines)
)

# What a camera or a screen calls its pictures: IMG_2034, DSC00123, Screenshot 2020-03-04.
CAMERA_NAME = re.compile(
    r"(?:img|dscn?|dscf|pxl|mvi|screen ?shot|screenshot|photo|picture|image|untitled|scan)"
    r"(?:[ _.-]*\d{2,})+",
    re.IGNORECASE,
)

# Captions that say that there is none. Compared without case and closing points.
PLACEHOLDERS = frozenset(
    {
        *("no description", "no description provided", "no description available", "description"),
        *("no caption", "none", "null", "nan", "n/a", "na", "untitled", "unnamed", "no name"),
        *("test", "todo", "tbd", "wip", "model", "3d model", "a 3d model", "3d object", "object"),
        *("my model", "my first model", "lorem ipsum"),
    }
)

# Tags that name a tool, a file, a market or a technique, compared by letters and digits only.
NOISE_TAGS = frozenset(
    """
    3d 3dmodel 3dmodels 3dmodeling 3dmodelling 3dart 3dasset 3dscan 3dprint 3dprinting 3dsmax 3dmax
    3dsmaxmodel ar vr arvr augmentedreality virtualreality virtual metaverse nft
    asset assets model models modeling modelling mesh object render rendering cgi cg scan scanned
    lowpoly lowpolymodel lowpolyart highpoly midpoly polygon polygons retopology uv unwrapped
    game games gameasset gameassets gameart gameready gamemodel gamedev gamedevelopment prop props
    pbr pbrtexture pbrtextured texture textures textured texturing material materials 4k 2k
    blender blender3d blendercycles blenderrender eevee maya autodesk autodeskmaya max
    zbrush mudbox cinema4d c4d houdini modo lightwave sketchup rhino3d fusion360 solidworks
    autocad tinkercad magicavoxel blockbench nomadsculpt substance substancepainter
    substancedesigner photoshop quixel quixelmixer megascans marmoset marmosettoolbag
    unity unity3d unreal unrealengine unrealengine4 unrealengine5 ue4 ue5 godot
    photogrammetry photoscan agisoft metashape realitycapture polycam meshroom
    sketchfab sketchfabweeklychallenge turbosquid cgtrader artstation free freemodel free3dmodel
    freedownload freedownloadable download downloadable
    obj fbx glb gltf stl ply dae blend usdz
    design modelo test wip untitled none nan other misc student homework assignment portfolio
    """.split()  # noqa: SIM905
)

_TOOL = (
    r"(?:autodesk )?(?:blender|maya|3ds ?max|zbrush|mudbox|c4d|cinema ?4d|houdini|sketchup|"
    r"substance(?: (?:painter|designer))?|photoshop|marmoset(?: toolbag)?|unity(?: ?3d)?|"
    r"unreal(?: engine)?|agisoft(?: (?:photoscan|metashape))?|metashape|photoscan|"
    r"reality ?capture|arnold|v-?ray|cycles|eevee|keyshot|polycam|meshroom|"
    r"quixel(?: mixer| suite)?|fusion ?360|solidworks|autocad|"
    r"rhino(?:ceros)?(?: ?3d)?|nomad sculpt|blockbench|magicavoxel|tinkercad|gimp|krita)"
    r"(?: v?\d+(?:\.\d+)*)?"
)
_DONE = (
    r"(?:made|created|modell?ed|sculpted|rendered|textured|texturing|baked|built|designed|"
    r"animated|rigged|processed|painted|done|exported|modelling|modeling|sculpting)"
)
# To the end of the sentence, or to where an address stood (see ``clean``).
_REST = r"[^.!?\0]*(?:[.!?]+|\0|$)"
_BY_TOOL = (
    rf"{_DONE}(?:(?:,| and| &) {_DONE})* (?:in|with|using|by|on|from) {_TOOL}"
    rf"(?:(?: ?[,/&+] ?| and |, and )(?:{_DONE} (?:in|with|using) )?{_TOOL})*"
)

# Phrases that go from captions.
PHRASES = re.compile(
    "|".join(
        [
            # "This was modelled in Maya for a class." as a whole; of "a chair modelled in Maya and
            # rendered in Arnold" the chair stays.
            rf"\b(?:this|the|it|my|all)(?: [\w-]+){{0,3}} (?:was|were|is|are|has been) {_BY_TOOL}\b"
            + _REST,
            rf"\b{_BY_TOOL}\b",
            # What leads up to an address that is gone: "Download it at", "More info: ".
            r"\b(?:you can )?(?:(?:download|buy)(?: (?:it|this|them|the \w+|here|now|free)){0,3}"
            r"|(?:get|find|see|watch|view|read) (?:it|this|them|more|me))"
            r"(?: (?:here|at|from|on|in|via)){0,2} ?:? ?\0(?= ?(?:[.!?\0]|$))",
            r"\b(?:links?|source|website|more(?: info(?:rmation)?)?)(?: here)? ?: ?\0",
            r"\b(?:available )?(?:for )?free (?:to |for )?download(?:able|s)?\b",
            r"\bdownload(?:able)? (?:it )?(?:now )?(?:for )?free\b",
            r"\bfree (?=3d models?\b)",
            r"\b(?:on|from|via|at|for) sketchfab\b|\bsketchfab\b",
            r"\bgame[ -]?ready\b",
            r"\b(?:please|pls) (?:like|subscribe|follow|credit|comment|support|rate|leave|give)\b"
            + _REST,
            r"\b(?:follow|support|contact|find) (?:me|us) (?:on|at|via)\b" + _REST,
            r"\bthank(?:s| you) for (?:watching|viewing|downloading|looking|your support)\b"
            + _REST,
            r"\b(?:check out|visit) my (?:other|profile|store|shop|channel|website|page|patreon)\b"
            + _REST,
            r"\bcc[ -]by(?:-(?:nc|nd|sa))*(?: ?\d\.\d)?\b",
        ]
    ),
    re.IGNORECASE,
)

_NAME_NOISE = (
    r"(?:free )?3d models?|free (?:download|model|asset)s?|(?:super )?low ?-?poly(?:gon)?|"
    r"high ?-?poly(?:gon)?|mid ?-?poly|game ?-?ready|game assets?|pbr|sketchfab|"
    r"(?:made )?(?:in|with) blender"
)
# The same at the ends of names, which are lower case by then. "3d printer" is one.
NAME_ENDS = re.compile(
    rf"^(?:(?:free (?=low|high|game|pbr))?(?:{_NAME_NOISE})(?: |$))+"
    rf"|(?:(?:^| )(?:{_NAME_NOISE}|3d))+$"
)
# Prefixes by which engines want mesh files named: SM_Chair, SK_Dog.
NAME_PREFIX = re.compile(r"^(?:SM|SK|SKM|GEO|MESH)_(?=[A-Za-z])")
