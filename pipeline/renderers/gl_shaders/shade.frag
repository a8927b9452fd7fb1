// Pass 2: colour once per visible face and pixel, at the middle of the samples that it covers.
// SAMPLES: the colour and coverage of a sample, to be blended over; otherwise the pixel's mean.
uniform sampler2D face_at;
layout(location = 0) out vec4 color;

int face_of(ivec2 at) { return int(packUnorm4x8(texelFetch(face_at, at, 0))) - 1; }

ivec2 place(int k) { return ivec2(k % SCALE, k / SCALE); }

#ifdef SAMPLES
void main() {
    ivec2 at = ivec2(gl_FragCoord.xy), corner = at / SCALE * SCALE;
    int f = face_of(at);
    if (f < 0) discard;  // cleared to 0
    vec2 middle = vec2(0.0);
    float count = 0.0;
    for (int k = 0; k < SCALE * SCALE; k++) {
        if (face_of(corner + place(k)) == f) {
            middle += vec2(place(k)) + 0.5;
            count += 1.0;
        }
    }
    color = vec4(shade(f, vec2(corner) + middle / count, float(SCALE)).rgb, 1.0);
}
#else
void main() {
    ivec2 corner = (ivec2(gl_FragCoord.xy) - ivec2(0, int(light.z))) * SCALE;
    uvec2 left = uvec2(0u);  // samples yet to be coloured, a bit each
    float covered = 0.0;
    for (int k = 0; k < SCALE * SCALE; k++) {
        if (face_of(corner + place(k)) < 0) continue;
        left[k >> 5] |= 1u << (k & 31);
        covered += 1.0;
    }
    if (covered == 0.0) discard;  // cleared to the background
    vec3 sum = vec3(0.0);
    do {
        int f = face_of(corner + place(left.x != 0u ? findLSB(left.x) : 32 + findLSB(left.y)));
        vec2 middle = vec2(0.0);
        float count = 0.0;
        for (int k = 0; k < SCALE * SCALE; k++) {
            if (face_of(corner + place(k)) != f) continue;
            left[k >> 5] &= ~(1u << (k & 31));
            middle += vec2(place(k)) + 0.5;
            count += 1.0;
        }
        sum += count * shade(f, vec2(corner) + middle / count, float(SCALE)).rgb;
    } while ((left.x | left.y) != 0u);
    const float ALL = float(SCALE * SCALE);
    vec3 mean = (sum + (ALL - covered) * background.rgb) / ALL;
    color = vec4(to_srgb(mean.r), to_srgb(mean.g), to_srgb(mean.b),
                 floor((covered * 255.0 + floor(ALL / 2.0)) / ALL) / 255.0);
}
#endif
