// Pass 1: which face is nearest at a sample. CUTOUT: where its alpha reaches the cutoff.
uniform int first_face;  // of this draw
#ifdef CUTOUT
uniform int n_solid;  // faces from here on are blended: only their opaque parts are drawn here
#endif
layout(location = 0) out vec4 face;

void main() {
    int f = first_face + gl_PrimitiveID;
#ifdef CUTOUT
    float cutoff = f < n_solid ? materials[MATERIAL * face_material[f] + CUTOFF] : 254.5 / 255.0;
    float alpha = shade(f, gl_FragCoord.xy, float(SCALE)).a;
    if (!(clamp(alpha, 0.0, 1.0) >= cutoff)) discard;
#endif
    gl_FragDepth = stepped_depth();
    face = unpackUnorm4x8(uint(f + 1));
}
