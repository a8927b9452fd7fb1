// Depth in the steps that the rasteriser compares it by: see depth_bits in raster_visibility.py.
float stepped_depth() {
    float iw = lens.z + gl_FragCoord.z / lens.w;
    // Rows go down here, so that a face seen from the front winds as OpenGL's back faces do.
    int bits = (floatBitsToInt(iw) & -DEPTH_STEP) - (gl_FrontFacing ? BACK_OFFSET : 0);
    return (intBitsToFloat(bits) - lens.z) * lens.w;
}
