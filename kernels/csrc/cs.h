/* The C kernels' common vocabulary: layouts, layer descriptions, and the table of functions that
 * each instruction set fills.
 *
 * Blocked layout (NCHWc): one image of C channels is stored as ceil(C / b) planes of H rows of W
 * pixels of b floats, b = cs_kernels.block. Row and plane strides are free, so that a tensor may
 * carry a halo (the zero padding that the next convolution reads) or be a part of a concatenation.
 * The last block's surplus channels hold arbitrary values, NaN among them, that no result depends on.
 * Strides and sizes count floats. All functions are single-threaded: callers split the work by
 * output ranges, never by a reduction, so that the bits do not depend on the number of threads.
 */
#ifndef CS_H
#define CS_H

#include <stddef.h>
#include <stdint.h>

enum cs_curve {
    CS_NO_CURVE = 0,
    CS_LEAKY_RELU,              /* a: the slope below 0 */
    CS_ELU,                     /* a */
    CS_SIGMOID,
    CS_HARD_SIGMOID,            /* a x + b within [0, 1] */
    CS_HARD_SWISH,
    CS_SILU,
    CS_GELU,
    CS_GELU_TANH,
    CS_TANH,
    CS_EXP
};

/* What a kernel does with a result: it stores it held within [low, high] (ReLU is [0, inf], and
 * [-inf, inf] nothing), which costs next to nothing; then, over what a tile has stored, the curve. */
typedef struct cs_activation {
    float low, high;
    int32_t curve;
    float a, b;
} cs_activation;

/* A run of output-channel blocks that one call of the micro-kernel computes together, and the range
 * of input planes that it reads (all of them, or its group's). */
typedef struct cs_conv_tile {
    int32_t block, blocks;      /* first output block, number of output blocks */
    int32_t plane, planes;      /* first input plane, number of input planes */
    int64_t weight;             /* offset of the packed weights: [planes][kh][kw][inner][blocks * b] */
} cs_conv_tile;

/* A convolution whose input already holds its padding.
 * `inner` consecutive floats of x are multiplied with `inner` consecutive weight vectors: the
 * channels of a block in the blocked layout, or the taps of a filter row in NCHW. */
typedef struct cs_conv {
    int32_t oh, ow;
    int32_t kh, kw;             /* filter rows and columns to walk (kw = 1 where inner covers a row) */
    int32_t inner, inner_last;  /* floats a plane; floats of the last plane of the tensor */
    int32_t last_plane;         /* index of that plane */
    cs_activation activation;
    int64_t x_plane, x_kh, x_kw, x_px, x_oh; /* steps of x: plane, filter row and column, output pixel and row */
    int64_t y_block, y_row, y_px;
    int64_t r_block, r_row, r_px;            /* the residual that is added before the activation */
    int32_t filters;            /* of which the last block may hold fewer than b */
    int32_t pixels;             /* vectors of pixels, not of filters: NCHW, stride 1, no residual */
    int32_t far;                /* with `pixels` and y_px 1: store past the caches, where vectors are aligned */
    int32_t pool;               /* with `pixels`: store the largest of each 2 x 2 outputs; y_px is not 1 */
    int32_t tiles;
    const cs_conv_tile *tile;
} cs_conv;

/* Depthwise: one filter a channel; x holds its padding, all tensors are blocked. */
typedef struct cs_depthwise {
    int32_t oh, ow, kh, kw;
    cs_activation activation;
    int64_t x_plane, x_kh, x_kw, x_px, x_oh;
    int64_t y_block, y_row;
} cs_depthwise;

/* A 3 x 3 convolution of stride 1 by Winograd tiles of m x m outputs; x holds its padding. */
typedef struct cs_winograd {
    int32_t m;                  /* 2, 4 or 6 */
    int32_t planes, blocks;     /* of the input and of the output */
    int32_t h, w, oh, ow;       /* the padded input's and the output's size */
    int32_t rows, columns;      /* tiles an image: ceil(oh / m), ceil(ow / m) */
    int32_t top, left;          /* zeros before the input that h and w don't count and memory doesn't hold */
    int32_t pool;               /* store the largest of each 2 x 2 outputs */
    cs_activation activation;
    int64_t x_plane, x_row, y_block, y_row, r_block, r_row;
} cs_winograd;

/* Floats between the coefficients of v and m, below: a vector more than they hold, so that those of
 * one tile don't fall into the same set of the cache. */
static inline int64_t cs_winograd_step(int planes, int slots, int block) {
    return ((int64_t)planes * slots + 1) * block;
}

/* Weight gradient of one filter tap: sums over all images and output pixels. */
typedef struct cs_wgrad {
    int64_t n, oh, ow;
    int64_t x_image, x_oh, x_px;
    int64_t g_image, g_row, g_block;   /* gradient of the output, blocked */
    int32_t half;               /* only the lower half of the lanes of the one block are filters */
} cs_wgrad;

/* Pooling over a blocked tensor without halo: windows are clipped to the input.
 * pb and pr matter only to the divisor of an average that counts padding. */
typedef struct cs_pool {
    int32_t h, w, oh, ow, kh, kw, sh, sw, pt, pl, pb, pr;
    int32_t count_padding;
    int64_t x_row, x_plane, y_row, y_plane;
} cs_pool;

enum cs_arithmetic { CS_ADD, CS_SUB, CS_MUL };

/* Per-pixel work on blocked tensors: y = activation(a * scale[c] + shift[c]), or of a + b, a - b or
 * a * b, where all steps within a plane are 0 for an operand of one value a channel. */
typedef struct cs_pointwise {
    int32_t h, w, arithmetic;
    cs_activation activation;
    int64_t a_px, a_row, a_plane, b_px, b_row, b_plane, y_row, y_plane;
} cs_pointwise;

/* Normalisation over the channels of each pixel of a blocked tensor. */
typedef struct cs_norm {
    int32_t channels, w;
    int32_t before, after;      /* LRN: the channels around each one that it sums over */
    float eps;                  /* of a layer norm */
    float alpha, beta, bias;    /* LRN: x / (bias + alpha * sum of squares)^beta */
    int64_t x_row, x_plane, y_row, y_plane;
} cs_norm;

struct cs_train_kernels;   /* train_kernels.h */

typedef struct cs_kernels {
    const char *isa;
    int32_t block;

    /* Whether a last block of half as many filters is better a tile of its own. */
    int32_t half;
    /* How many output blocks one tile takes, for a layer of ow pixels a row and `blocks` blocks. */
    int (*conv_tile_blocks)(int ow, int blocks);
    /* How many pixels of a row a tile of so many blocks takes at the most; x_px: floats between them. */
    int (*conv_tile_pixels)(int blocks);
    /* Whether vectors of pixels are the better ones for a stride of 1 over an NCHW image: in general, and
     * where the output is to be NCHW too (y_px is 1 then, and y_block the floats of b channels). */
    int (*conv_by_pixels)(int ow, int filters, int taps);
    int (*conv_planar_by_pixels)(int ow, int filters, int taps);
    /* Rows [oh0, oh1) (of what is stored) of tile t of one image. x points at the first padded pixel, r may be NULL.
     * w and bias are packed; bias holds blocks * b floats for all output channels. */
    void (*conv)(const cs_conv *p, int t, int oh0, int oh1, const float *x, const float *w,
                 const float *bias, const float *r, float *y);
    /* `count` tiles of an image from tile `first` on, to (or from) the places `slot`, `slot` + 1, ...
     * of the `slots` places a coefficient in v[(m+2)^2][planes][slots][b] (or from
     * m[(m+2)^2][blocks][slots][b]), whose coefficients are cs_winograd_step floats apart. */
    void (*winograd_input)(const cs_winograd *p, int first, int count, const float *x, float *v,
                           int slot, int slots);
    void (*winograd_output)(const cs_winograd *p, int block, int blocks, int first, int count,
                            const float *m, int slot, int slots, const float *bias, const float *r,
                            float *y);
    /* Likewise A dY A' of tiles of the output's gradient g, which has y's steps, of `blocks` blocks */
    void (*winograd_gradient)(const cs_winograd *p, int blocks, int first, int count, const float *g,
                              float *v, int slot, int slots);
    /* U = G g G' of `count` vectors of filters: taps g_tap apart, rotated by 180 degrees with `turn` */
    void (*winograd_filter)(int m, int turn, int count, const float *g, int64_t g_step, int64_t g_tap,
                            float *u, int64_t u_step, int64_t u_coefficient);
    /* its adjoint, g[count][9][b] = G' u G */
    void (*winograd_filter_gradient)(int m, int count, const float *u, int64_t u_coefficient, float *g);
    void (*depthwise)(const cs_depthwise *p, int block, int oh0, int oh1, const float *x,
                      const float *w, const float *bias, float *y);
    /* dw[inner][b] of each of `blocks` <= 2 output blocks, dw_block apart, = (or with `add`: +=) sum x * g */
    void (*weight_gradient)(const cs_wgrad *p, int inner, int blocks, const float *x, const float *g,
                            float *dw, int64_t dw_block, int add);
    /* of a depthwise convolution: dw[kh][kw][b] of one block, of one image (p->n is not read) */
    void (*depthwise_gradient)(const cs_depthwise *p, const cs_wgrad *a, const float *x, const float *g,
                               float *dw, int add);
    /* x += what the depthwise filter w gives of g; x holds its padding, all of one block */
    void (*depthwise_scatter)(const cs_depthwise *p, const float *g, const float *w, float *x);
    /* y = (or with `add`: +=) x: h rows of w pixels of one block */
    void (*copy)(int h, int w, int add, const float *x, int64_t x_row, float *y, int64_t y_row);
    /* adds the sums of a block's pixels to sums[b], and those of their squares to squares[b] (or NULL) */
    void (*channel_sums)(int h, int w, const float *x, int64_t x_row, double *sums, double *squares);

    void (*max_pool)(const cs_pool *p, int block, int oh0, int oh1, const float *x, float *y);
    void (*avg_pool)(const cs_pool *p, int block, int oh0, int oh1, const float *x, float *y);
    /* y[b] = mean, or largest, over the pixels of one block */
    void (*global_avg_pool)(int h, int w, int64_t row, const float *x, float *y);
    void (*global_max_pool)(int h, int w, int64_t row, const float *x, float *y);
    /* rows [h0, h1) of one block; the scale and shift pointers are at that block */
    void (*scale_shift)(const cs_pointwise *p, int block, int h0, int h1, const float *a,
                        const float *scale, const float *shift, float *y);
    /* likewise with the slopes below 0 */
    void (*prelu)(const cs_pointwise *p, int block, int h0, int h1, const float *a,
                  const float *slope, float *y);
    void (*arithmetic)(const cs_pointwise *p, int block, int h0, int h1, const float *a,
                       const float *b, float *y);
    /* n vectors, x_px and y_px floats apart; x and y may be the same */
    void (*activate)(const cs_activation *f, int64_t n, const float *x, int64_t x_px, float *y,
                     int64_t y_px);
    /* rows [h0, h1) of all blocks; of one block */
    void (*layer_norm)(const cs_norm *p, int h0, int h1, const float *x, const float *weight,
                       const float *bias, float *y);
    void (*lrn)(const cs_norm *p, int block, int h0, int h1, const float *x, float *y);
    /* one row of n contiguous floats; x and y may be the same */
    void (*softmax)(int64_t n, const float *x, float *y);
    void (*log_softmax)(int64_t n, const float *x, float *y);

    /* Channels to other places: lane l of w pixels of y becomes lane lanes[s][l] of those at x[s]; where
     * that is negative for all of the `sources` <= b it stays as it is. */
    void (*rearrange)(int w, int sources, const float *const *x, const int32_t *lanes, float *y);

    /* NCHW (any strides, in floats) -> rows [h0, h1) of one block; `channels` <= b are real, the rest 0 */
    void (*pack)(int channels, int h0, int h1, int w, const float *x, int64_t x_c, int64_t x_h, int64_t x_w,
                 float *y, int64_t y_row, int64_t y_px);
    /* one block -> NCHW, C-contiguous rows: y_c floats between channels, y_h between rows */
    void (*unpack)(int channels, int h0, int h1, int w, const float *x, int64_t x_row,
                   float *y, int64_t y_c, int64_t y_h);
    /* the same past the caches; cs_stream_end in cpu.h completes it */
    void (*unpack_far)(int channels, int h0, int h1, int w, const float *x, int64_t x_row,
                       float *y, int64_t y_c, int64_t y_h);

    const struct cs_train_kernels *train;

    /* floating-point operations done by `rounds` of the densest multiply-add loop of this set */
    double (*peak)(int64_t rounds, float *sink);
} cs_kernels;

/* The table for the name, or NULL where this build or this CPU does not have it. */
const cs_kernels *cs_kernels_for(const char *isa);
/* Names, best first; returns how many of them this CPU has. */
int cs_available(const char **names, int room);

#endif
