// Rotates the pairs (x[d], x[d + D/2]) of x [B, N, H, D] by (first_position + n) * theta^(-2d/D), or back when inverse = 1.
// Launch: one thread per (b, n, d < D/2), which serves all heads. The angle is formed and reduced in fp64, in half turns, so it stays
// exact for positions in the millions; the rotation is fp32. x and y may be the same tensor.
#include "common.cuh"

KERNEL rope(const element* x, int64 batches, int64 tokens, int64 heads, int64 width, int64 first_position, double theta, int inverse, element* y)
{
    const double PI = 3.14159265358979323846;
    const int64 half = width / 2;
    const int64 thread = global_thread();
    if (thread >= batches * tokens * half) return;
    const int64 token = thread / half, d = thread % half;
    const double position = (double)(first_position + token % tokens);
    double sine, cosine;
    sincospi(position * pow(theta, -2.0 * d / width) / PI, &sine, &cosine);
    const float c = (float)cosine, s = inverse ? -(float)sine : (float)sine;
    for (int64 h = 0; h < heads; ++h) {
        const int64 i = (token * heads + h) * width + d;
        const float a = to_float(x[i]), b = to_float(x[i + half]);
        from_float(a * c - b * s, y[i]);
        from_float(b * c + a * s, y[i + half]);
    }
}
