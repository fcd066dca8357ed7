/* Bilinear interpolation of one row of an image, for augmentation. Four pixels at a time, whose left and
 * right neighbours are loaded in pairs: this much every processor does with vectors of four, and gathering
 * from memory, where there are instructions for it, is no faster. */
#ifndef CS_INTERPOLATE_H
#define CS_INTERPOLATE_H

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

/* out[c][j] of `channels` planes, for width pixels; x, y: where each lies in a plane, not negative, whose
 * rows are `stride` floats apart; both are read (and are to be places within) up to a multiple of four. */
static inline void cs_interpolate_row(int channels, int width, const float *x, const float *y, const float *planes,
                                      int64_t plane, int32_t stride, float *out, int64_t out_plane) {
    for (int j = 0; j < width; j += 4) {
        cs_float4 across, down;
        memcpy(&across, x + j, sizeof(across));
        memcpy(&down, y + j, sizeof(down));
        const cs_int4 column = __builtin_convertvector(across, cs_int4), row = __builtin_convertvector(down, cs_int4);
        across -= __builtin_convertvector(column, cs_float4);
        down -= __builtin_convertvector(row, cs_float4);
        int32_t at[4];
        for (int i = 0; i < 4; i++)
            at[i] = row[i] * stride + column[i];
        const size_t bytes = sizeof(float) * (width - j < 4 ? width - j : 4);
        for (int c = 0; c < channels; c++) {
            cs_float4 left, right;
            cs_load_pairs(planes + c * plane, at, &left, &right);
            const cs_float4 above = left + across * (right - left);
            cs_load_pairs(planes + c * plane + stride, at, &left, &right);
            const cs_float4 below = left + across * (right - left), value = above + down * (below - above);
            if (bytes == sizeof(value))
                memcpy(out + c * out_plane + j, &value, sizeof(value));
            else
                memcpy(out + c * out_plane + j, &value, bytes);
        }
    }
}

#endif
