/* What training needs of each instruction set beside the kernels of cs.h. Tensors are blocked; `n`
 * counts vectors of a row, one a pixel, that lie together. */
#ifndef CS_TRAIN_KERNELS_H
#define CS_TRAIN_KERNELS_H

#include "cs.h"

/* c[r][j] = sum over k of a[r * a_row + k * a_step] * b[k * b_step + j], for `rows` x `columns`. */
typedef struct cs_gemm {
    int64_t rows, columns, depth;
    int64_t a_row, a_step, b_step, c_row;
    int32_t add;            /* to what c holds */
    int32_t exact;          /* nothing may be written behind the last column (b is read there) */
} cs_gemm;

/* Where the derivative of an activation is taken. */
enum cs_slope_at {
    CS_SLOPE_NONE,          /* there is no activation */
    CS_SLOPE_AT_RESULT,     /* at what came out: bounds, and a slope below 0 that isn't negative */
    CS_SLOPE_AT_INPUT
};

/* Batch norm of one block of channels; all arrays hold one block. The activation's input is
 * x * scale + shift. */
typedef struct cs_norm_block {
    const cs_activation *activation;
    int32_t slope_at;
    int32_t add;            /* to what dx holds */
    const float *mean, *scale, *shift;
    const float *of_dy, *of_x, *offset;     /* dx = of_dy * dy + of_x * (x - mean) + offset */
} cs_norm_block;

/* Floats between the rows of each. */
typedef struct cs_pool_rows {
    int64_t x, y, dx, dy;
} cs_pool_rows;

typedef struct cs_train_kernels {
    /* start: the sums' first values, one a column, or NULL for zeros */
    void (*gemm)(const cs_gemm *p, const float *a, const float *b, const float *start, float *c);

    /* sums[b] += x - shift, squares[b] += (x - shift)^2 */
    void (*norm_statistics)(int64_t n, const float *x, const float *shift, double *sums, double *squares);
    /* y = activation(x * scale + shift + r); r may be NULL */
    void (*norm)(const cs_norm_block *p, int64_t n, const float *x, const float *r, float *y);
    /* g = dy times the activation's derivative; sums[b] += g, products[b] += g * (x - mean).
     * y: the result, for CS_SLOPE_AT_RESULT; g is stored at dr, which may be dy or NULL. */
    void (*norm_sums)(const cs_norm_block *p, int64_t n, const float *x, const float *y,
                      const float *dy, float *dr, double *sums, double *products);
    void (*norm_dx)(const cs_norm_block *p, int64_t n, const float *x, const float *dy, float *dx);

    /* dx = (or +=) dy times the activation's derivative at x, or with `result` where it gave x */
    void (*activate_dx)(const cs_activation *f, int result, int add, int64_t n, const float *x,
                        const float *dy, float *dx);
    /* a slope a channel below 0: dx = (or +=) dy times the derivative at x;  sums[b] += dy x where x
     * is not above 0, the gradient by the slopes */
    void (*prelu_dx)(const float *slopes, int add, int64_t n, const float *x, const float *dy, float *dx);
    void (*prelu_slopes)(int64_t n, const float *x, const float *dy, double *sums);
    /* dx = (or +=) factor * dy;  dx = (or +=) dy * r, r_px floats (0 or a vector) between pixels */
    void (*scale_dx)(float factor, int add, int64_t n, const float *dy, float *dx);
    void (*multiply_dx)(int add, int64_t n, const float *dy, const float *r, int64_t r_px, float *dx);
    /* sum[b] += dy, or dy * r where r is not NULL */
    void (*sum)(int64_t n, const float *dy, const float *r, float *sum);

    /* One block of an image; of p's steps none are read. Of equal largest values the first of a window gets the gradient, and
     * only where the largest is within the bounds of the activation that made x. */
    void (*max_pool_dx)(const cs_pool *p, const cs_pool_rows *rows, const cs_activation *f, int add,
                        const float *x, const float *y, const float *dy, float *dx);
    void (*avg_pool_dx)(const cs_pool *p, const cs_pool_rows *rows, int add, const float *dy, float *dx);
    /* a row of n pixels: those equal to `largest` that are the first for their channel; done[b] */
    void (*global_max_dx)(int64_t n, const float *x, const float *largest, const float *dy,
                          int32_t *done, int add, float *dx);
    void (*fill)(int64_t n, const float *v, float factor, int add, float *dx);

    /* y = (or +=) x / (1 - rate) or 0, by a hash of the key and the element's number: that of lane l
     * of pixel i is first + l * lane_step + i. */
    void (*dropout)(float rate, const uint32_t key[2], uint32_t first, uint32_t lane_step, int add,
                    int64_t n, const float *x, float *y);
    /* one row of n floats: dx = (or +=) y (dy - sum dy y) */
    void (*softmax_dx)(int64_t n, const float *y, const float *dy, int add, float *dx);
    /* one row: returns -sum t log softmax(x); dx = (softmax(x) sum t - t) * factor */
    double (*cross_entropy)(int64_t n, const float *x, const float *t, float factor, float *dx);
} cs_train_kernels;

#endif
