/* Rows of pixels, for augmentation: bytes to floats, and bilinear interpolation of these. Loops that
 * compilers turn into vectors, and vectors of four, which every processor has. */
#ifndef CS_PIXELS_H
#define CS_PIXELS_H

#include <stdint.h>
#include <string.h>

typedef float cs_float4 __attribute__((vector_size(16)));
typedef double cs_double2 __attribute__((vector_size(16)));
typedef int32_t cs_int4 __attribute__((vector_size(16)));

#if defined(__clang__)
#define CS_SHUFFLE4(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CS_SHUFFLE4(a, b, ...) __builtin_shuffle(a, b, (cs_int4){__VA_ARGS__})
#endif

/* Has rows of pixels brought near: images come from anywhere in the data, one of which waits for memory as
 * long as its conversion takes. What is behind the first pages comes by itself. */
static inline void cs_prefetch(const uint8_t *pixels, int64_t bytes) {
    bytes = bytes < 4096 ? bytes : 4096;
    for (int64_t at = 0; at < bytes; at += 64)
        __builtin_prefetch(pixels + at);
}

static inline void cs_normalise(int width, const uint8_t *restrict pixels, float factor, float shift,
                                float *restrict out) {
    for (int j = 0; j < width; j++)
        out[j] = (float)pixels[j] * factor - shift;
}

static inline void cs_look_up(int width, const uint8_t *restrict pixels, const float *restrict table,
                              float *restrict out) {
    for (int j = 0; j < width; j++)
        out[j] = table[pixels[j]];
}

static inline void cs_fill(int width, float value, float *out) {
    for (int j = 0; j < width; j++)
        out[j] = value;
}

static inline void cs_mirror(int width, const float *restrict row, float *restrict out) {
    for (int j = 0; j < width; j++)
        out[j] = row[width - 1 - j];
}

/* places a step apart, limited to 0..last */
static inline void cs_places(int width, float step, float first, float last, float *out) {
    for (int j = 0; j < width; j++) {
        float place = step * (float)j + first;
        place = place < 0.0f ? 0.0f : place;
        out[j] = place > last ? last : place;
    }
}

static inline double cs_pair(const float *p) {
    double pair;    /* of floats */
    memcpy(&pair, p, sizeof(pair));
    return pair;
}

/* the pairs at p[at[0]], p[at[1]], ..., as their left and their right halves */
static inline void cs_load_pairs(const float *p, const int32_t *at, cs_float4 *left, cs_float4 *right) {
    const cs_float4 low = (cs_float4)(cs_double2){cs_pair(p + at[0]), cs_pair(p + at[1])};
    const cs_float4 high = (cs_float4)(cs_double2){cs_pair(p + at[2]), cs_pair(p + at[3])};
    *left = CS_SHUFFLE4(low, high, 0, 2, 4, 6);
    *right = CS_SHUFFLE4(low, high, 1, 3, 5, 7);
}

/* Bilinear interpolation of a row, first half: at[j] becomes the place in a plane, whose rows are `stride`
 * floats apart, of the pixel left of and above (x[j], y[j]), which become the shares of those behind it. */
static inline void cs_corners(int width, int32_t stride, float *restrict x, float *restrict y, int32_t *restrict at) {
    for (int j = 0; j < width; j++) {
        const int32_t column = (int32_t)x[j], row = (int32_t)y[j];
        at[j] = row * stride + column;
        x[j] -= (float)column;
        y[j] -= (float)row;
    }
}

/* Second half: out[c][j] of `channels` planes. Four pixels at a time, whose left and right neighbours are
 * loaded in pairs; gathering them, where there are instructions for it, is no faster. x, y and at are read
 * up to four pixels. */
static inline void cs_interpolate(const int channels, int width, const float *x, const float *y, const int32_t *at,
                                  const float *planes, int64_t plane, int32_t stride, float *out, int64_t out_plane) {
    for (int j = 0; j < width; j += 4) {
        if (j && j > width - 4)
            j = width - 4;  /* a few once more */
        cs_float4 across, down;
        memcpy(&across, x + j, sizeof(across));
        memcpy(&down, y + j, sizeof(down));
        for (int c = 0; c < channels; c++) {
            cs_float4 left, right;
            cs_load_pairs(planes + c * plane, at + j, &left, &right);
            const cs_float4 above = left + across * (right - left);
            cs_load_pairs(planes + c * plane + stride, at + j, &left, &right);
            const cs_float4 below = left + across * (right - left), value = above + down * (below - above);
            if (width >= 4)
                memcpy(out + c * out_plane + j, &value, sizeof(value));
            else
                memcpy(out + c * out_plane, &value, sizeof(float) * width);
        }
    }
}

static inline void cs_interpolate_row(int channels, int width, float *x, float *y, int32_t *at, const float *planes,
                                      int64_t plane, int32_t stride, float *out, int64_t out_plane) {
    cs_corners(width, stride, x, y, at);
    if (channels == 1)
        cs_interpolate(1, width, x, y, at, planes, plane, stride, out, out_plane);
    else
        cs_interpolate(channels, width, x, y, at, planes, plane, stride, out, out_plane);
}

#endif
