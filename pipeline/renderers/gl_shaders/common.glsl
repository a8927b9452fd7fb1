// What every stage shares: the buffers of a mesh, the view, the colour of a face at a sample.
//
// The arithmetic is that of raster_visibility.py (project) and raster_fragments.py (the rest), step
// by step: see there for the reasons. Coordinates are samples, row 0 at the top.

layout(std430, binding = 0) readonly buffer Vertices { float vertices[]; };          // (V, 3)
layout(std430, binding = 1) readonly buffer Faces { int faces[]; };                  // (F, 3)
layout(std430, binding = 2) readonly buffer Normals { float normals[]; };            // (N, 3)
layout(std430, binding = 3) readonly buffer CornerNormals { int corner_normal[]; };  // (F, 3)
layout(std430, binding = 4) readonly buffer Coordinates { float uv[]; };             // (V, 2)
layout(std430, binding = 5) readonly buffer VertexColors { float vertex_color[]; };  // (V, 4)
layout(std430, binding = 6) readonly buffer FaceMaterials { int face_material[]; };  // (F,)
layout(std430, binding = 7) readonly buffer Materials { float materials[]; };        // (M, MATERIAL)
layout(std430, binding = 8) readonly buffer Levels { int levels[]; };  // (T + 1,), then (L, 3)
layout(std430, binding = 9) readonly buffer BaseTexels { uint base_texels[]; };      // sRGB, alpha
layout(std430, binding = 10) readonly buffer MipTexels { uvec2 mip_texels[]; };      // linear, 16 bits
layout(std430, binding = 11) readonly buffer Tables { uint decode16[256]; uint encode[]; };

layout(std140, binding = 0) uniform View {
    vec4 pose[3];     // rows of the world-to-camera matrix
    vec4 ray[3];      // direction through sample (x, y): ray[0] + x ray[1] + y ray[2]
    vec4 lens;        // focal length and half the picture's side in samples, depth = (1/w - z) w
    vec4 light;       // ambient, diffuse, first row of this view in the picture
    vec4 background;  // linear RGB
};
uniform int level_rows;  // where the rows of levels begin
uniform bool has_color;
uniform bool emits;

const float TINY = 1e-30;
const float NEAR = 1e-3;
const float FAR_AWAY = 1e5;

// x, y in samples and 1/w; 1/w is -1 for a vertex whose faces are left out.
vec3 project(vec3 p) {
    float w = -(dot(pose[2].xyz, p) + pose[2].w);
    float iw = 1.0 / w;
    float x = lens.y + lens.x * (dot(pose[0].xyz, p) + pose[0].w) * iw;
    float y = lens.y - lens.x * (dot(pose[1].xyz, p) + pose[1].w) * iw;
    bool good = w > NEAR && abs(x) < FAR_AWAY && abs(y) < FAR_AWAY && iw > 0.0;
    return good ? vec3(x, y, iw) : vec3(0.0, 0.0, -1.0);
}

vec3 vertex(int i) { return vec3(vertices[3 * i], vertices[3 * i + 1], vertices[3 * i + 2]); }

vec3 normal(int i) { return vec3(normals[3 * i], normals[3 * i + 1], normals[3 * i + 2]); }

vec2 coordinate(int i) { return vec2(uv[2 * i], uv[2 * i + 1]); }

vec4 color_of(int i) {
    return vec4(vertex_color[4 * i], vertex_color[4 * i + 1], vertex_color[4 * i + 2],
                vertex_color[4 * i + 3]);
}

// A base-2 logarithm that is linear between powers of two.
float rough_log2(float x) {
    int bits = floatBitsToInt(x);
    return float((bits >> 23) - 127) + float(bits & 0x7FFFFF) / 8388608.0;
}

float wrap(float t) {
    t -= floor(t);
    return t >= 0.0 && t <= 1.0 ? t : 0.0;  // NaN and infinity too
}

// Linear RGBA of a texel, 16 bits each.
uvec4 texel(bool is_base, int p) {
    if (is_base) {
        uint t = base_texels[p];
        return uvec4(decode16[t & 255u], decode16[t >> 8 & 255u], decode16[t >> 16 & 255u],
                     (t >> 24) * 257u);
    }
    uvec2 t = mip_texels[p];
    return uvec4(t.x & 0xFFFFu, t.x >> 16, t.y & 0xFFFFu, t.y >> 16);
}

// One level, linear between texels, repeating. The four weights sum to 2**16.
vec4 bilinear(vec2 place, int row, bool is_base) {
    int offset = levels[row], width = levels[row + 1], height = levels[row + 2];
    vec2 t = place * vec2(width, height) - 0.5;
    vec2 corner = floor(t);
    uvec2 f = uvec2((t - corner) * 256.0 + 0.5);
    ivec2 a = ivec2(corner);
    a.x = a.x < 0 ? a.x + width : a.x;
    a.y = a.y < 0 ? a.y + height : a.y;
    int x1 = a.x + 1 < width ? a.x + 1 : 0;
    int row0 = offset + a.y * width;
    int row1 = offset + (a.y + 1 < height ? a.y + 1 : 0) * width;
    uint w11 = f.x * f.y;
    uint w10 = (f.x << 8) - w11, w01 = (f.y << 8) - w11;
    uint w00 = 65536u - (f.x << 8) - w01;
    uvec4 sum = w00 * texel(is_base, row0 + a.x) + w10 * texel(is_base, row0 + x1)
              + w01 * texel(is_base, row1 + a.x) + w11 * texel(is_base, row1 + x1);
    return vec4(sum) * (1.0 / (65535.0 * 65536.0));
}

// The texture at wrapped coordinates, between the two levels nearest to lod.
vec4 trilinear(int texture_index, vec2 place, float lod) {
    int first = levels[texture_index];
    float highest = float(levels[texture_index + 1] - first - 1);
    lod = min(lod, highest);
    int level = int(lod);
    float part = lod - float(level);
    int row = level_rows + 3 * (first + level);
    vec4 value = (1.0 - part) * bilinear(place, row, level == 0);
    if (part > 0.0) value += part * bilinear(place, row + 3, false);
    return value;
}

// A face at one sample: what interpolation over it needs.
struct Place {
    ivec3 corner;   // vertices
    vec3 q;         // barycentrics over w, clamped to the triangle
    vec2 g1, g2;    // growth of the screen barycentrics of corners 1 and 2 per sample
    vec3 iw;        // 1/w of the corners
    float pixel;    // side of a pixel in samples, by which mip levels are chosen
};

// The texture over a face.
vec4 surface_texture(Place s, int texture_index) {
    float total = 1.0 / (s.q.x + s.q.y + s.q.z);
    vec2 ta = coordinate(s.corner.x), tb = coordinate(s.corner.y), tc = coordinate(s.corner.z);
    vec2 t = (s.q.x * ta + s.q.y * tb + s.q.z * tc) * total;
    // Derivatives of t = T/W over a pixel, in texels of level 0: (dT - t dW) / W.
    vec2 T1 = tb * s.iw.y - ta * s.iw.x, T2 = tc * s.iw.z - ta * s.iw.x;
    vec2 W = s.iw.yz - s.iw.x;
    int row = level_rows + 3 * levels[texture_index];
    vec2 size = vec2(levels[row + 1], levels[row + 2]) * s.pixel * total;
    vec2 dx = (T1 * s.g1.x + T2 * s.g2.x - t * (W.x * s.g1.x + W.y * s.g2.x)) * size;
    vec2 dy = (T1 * s.g1.y + T2 * s.g2.y - t * (W.x * s.g1.y + W.y * s.g2.y)) * size;
    float footprint = max(dot(dx, dx), dot(dy, dy));
    float lod = 0.5 * rough_log2(footprint > 1.0 ? footprint : 1.0);
    return trilinear(texture_index, vec2(wrap(t.x), wrap(1.0 - t.y)), lod);
}

// Linear RGB, lit, and alpha of face f at sample coordinates `at`.
vec4 shade(int f, vec2 at, float pixel) {
    Place s;
    s.corner = ivec3(faces[3 * f], faces[3 * f + 1], faces[3 * f + 2]);
    s.pixel = pixel;
    vec3 a = project(vertex(s.corner.x));
    vec3 b = project(vertex(s.corner.y));
    vec3 c = project(vertex(s.corner.z));
    s.iw = vec3(a.z, b.z, c.z);
    vec2 u = b.xy - a.xy, v = c.xy - a.xy, d = at - a.xy;
    float det = u.x * v.y - v.x * u.y;
    float r = abs(det) > TINY ? 1.0 / det : 0.0;
    s.g1 = vec2(v.y, -v.x) * r;
    s.g2 = vec2(-u.y, u.x) * r;
    float l1 = max(dot(s.g1, d), 0.0), l2 = max(dot(s.g2, d), 0.0);
    s.q = vec3(max(1.0 - l1 - l2, 0.0), l1, l2) * s.iw;

    vec3 n = s.q.x * normal(corner_normal[3 * f]) + s.q.y * normal(corner_normal[3 * f + 1])
           + s.q.z * normal(corner_normal[3 * f + 2]);
    vec3 e = ray[0].xyz + at.x * ray[1].xyz + at.y * ray[2].xyz;
    float shine = abs(dot(n, e)) / sqrt(dot(n, n) * dot(e, e) + TINY);

    int m = MATERIAL * face_material[f];
    vec4 color = vec4(materials[m], materials[m + 1], materials[m + 2], materials[m + 3]);
    color.rgb *= materials[m + NO_LIGHT] > 0.0 ? 1.0 : light.x + light.y * shine;
    if (has_color)
        color *= (s.q.x * color_of(s.corner.x) + s.q.y * color_of(s.corner.y)
                  + s.q.z * color_of(s.corner.z)) / (s.q.x + s.q.y + s.q.z);
    int texture_index = int(materials[m + TEXTURE]);
    if (texture_index >= 0) color *= surface_texture(s, texture_index);
    if (emits) {
        int at_emission = m + EMISSION;
        vec3 glow = vec3(materials[at_emission], materials[at_emission + 1],
                         materials[at_emission + 2]);
        texture_index = int(materials[m + EMISSIVE_TEXTURE]);
        if (texture_index >= 0) glow *= surface_texture(s, texture_index).rgb;
        color.rgb = min(color.rgb + glow, 1.0);
    }
    return color;
}

// sRGB code of a linear value, 0 to 1 in steps of 1/255. Four codes stand in a word of the table.
float to_srgb(float value) {
    uint i = uint(clamp(value, 0.0, 1.0) * (ENCODE_STEPS - 1.0) + 0.5);
    return float(encode[i >> 2] >> 8 * (i & 3u) & 255u) / 255.0;
}
