"""Reading mesh files: ``load_mesh`` turns any supported file into one ``pipeline.scene.Mesh``.

- ``parts``: limits and the intermediate form that every reader yields;
- ``files``: reading the file and what it refers to, never outside its folder;
- ``textures``: decoding images under the same limits;
- ``gltf``, ``gltf_data``: glTF 2.0 (.glb, .gltf), read directly;
- ``wavefront`` (.obj), ``wavefront_geometry``: Wavefront, read directly;
- ``simple`` (.ply, .stl, .off), ``ply``: what their columns mean; STL is parsed by trimesh;
- ``collada`` (.dae): on pycollada;
- ``load``: the entry point; flattening, orientation, materials.
"""

from pipeline.meshes.load import SUFFIXES, UP_AXES, load_mesh
from pipeline.meshes.parts import Limits

__all__ = ["SUFFIXES", "UP_AXES", "Limits", "load_mesh"]
