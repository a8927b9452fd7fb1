// Pass 3: blended faces, farthest first, over the samples: premultiplied linear RGBA.
layout(std430, binding = 12) readonly buffer Order { int order[]; };
layout(location = 0) out vec4 color;

void main() {
    vec4 surface = shade(order[gl_PrimitiveID], gl_FragCoord.xy, float(SCALE));
    float alpha = clamp(surface.a, 0.0, 1.0);
    gl_FragDepth = stepped_depth();
    color = vec4(surface.rgb * alpha, alpha);
}
