// Projects a vertex. w is 1: nothing is interpolated, and depth, which runs from 0 at the farthest
// vertex to 1 at the nearest, must be linear in 1/w on the screen as the rasteriser's is.
in vec3 position;
invariant gl_Position;
out float gl_ClipDistance[1];

void main() {
    vec3 s = project(position);
    bool good = s.z > 0.0;
    vec2 place = s.xy / lens.y - 1.0;  // rows go down in the buffers
    float depth = clamp((s.z - lens.z) * lens.w, 0.0, 1.0);
    gl_Position = good ? vec4(place, 2.0 * depth - 1.0, 1.0) : vec4(0.0, 0.0, 0.0, 1.0);
    // A face is cut down to where this is not negative: to nothing when a vertex is left out.
    gl_ClipDistance[0] = good ? 0.0 : -1.0;
}
