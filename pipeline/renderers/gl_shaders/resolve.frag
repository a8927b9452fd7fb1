// Pass 4: the mean of a pixel's samples over the background.
uniform sampler2D samples;
layout(location = 0) out vec4 color;

void main() {
    ivec2 corner = (ivec2(gl_FragCoord.xy) - ivec2(0, int(light.z))) * SCALE;
    vec4 mean = vec4(0.0);
    for (int k = 0; k < SCALE * SCALE; k++)
        mean += texelFetch(samples, corner + ivec2(k % SCALE, k / SCALE), 0);
    mean *= 1.0 / float(SCALE * SCALE);
    vec3 over = mean.rgb + (1.0 - mean.a) * background.rgb;
    color = vec4(to_srgb(over.r), to_srgb(over.g), to_srgb(over.b),
                 floor(min(mean.a, 1.0) * 255.0 + 0.5) / 255.0);
}
