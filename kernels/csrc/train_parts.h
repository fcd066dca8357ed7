/* What the files of train_conv.h share. */
#ifndef CS_TRAIN_PARTS_H
#define CS_TRAIN_PARTS_H

#include "train_conv.h"

/* A direct convolution as a whole: forward, or the gradient of those pixels of the input that have one
 * residue of the stride. It reads the blocked (or planar) tensor from pixel (top, left) on, which may lie
 * in the padding. */
struct cs_train_direct {
    cs_conv conv;
    int32_t filters, channels, groups, planes;
    int32_t top, left, rows, columns;       /* of what is read */
    int32_t dilation;                       /* of filter rows; 0 with a stride */
    int64_t weight, floats;                 /* its packed weights: where they begin and how many they are */
    int64_t y_start;                        /* its first output pixel */
    int32_t first_h, step_h, first_w, step_w;   /* of the layer's taps, in the order of this one's */
};

static inline int cs_blocks(int channels, int block) { return (channels + block - 1) / block; }
static inline int64_t cs_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t cs_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int cs_winograd_m(int way) { return way == CS_WAY_WINOGRAD4 ? 4 : 2; }
static inline int cs_is_winograd(int way) { return way == CS_WAY_WINOGRAD2 || way == CS_WAY_WINOGRAD4; }
/* floats between the coefficients of packed weights: not a power of two, whose lines share a cache set */
static inline int64_t cs_coefficient(int64_t floats, int block) { return floats + block; }

/* the rectangle of an image that a pass reads, padding included; planes of rows of pixels in scratch memory */
typedef struct cs_window {
    int32_t top, left, rows, columns;
} cs_window;

/* Where a partial sum of the weight gradient has the square [b of x][b of dy] of a block, plane and tap. */
typedef struct cs_squares {
    int32_t taps;               /* or Winograd coefficients */
    int64_t block, plane, tap;  /* steps */
    int64_t bias;               /* where dbias begins */
    int64_t floats;             /* in all */
} cs_squares;

/* of so many output blocks */
cs_squares cs_train_squares(const cs_train_conv *l, int blocks);
cs_window cs_train_window_x(const cs_train_conv *l);
cs_window cs_train_window_dy(const cs_train_conv *l);
/* One image of `planes` planes (blocks, or NCHW with planar) into scratch memory with zeros around. */
void cs_train_stage(const cs_kernels *k, const cs_window *v, int planar, int planes, int h, int w,
                    const float *x, int64_t plane, int64_t row, float *staged);
/* the geometry of a pass's Winograd tiles */
cs_winograd cs_train_tiles(const cs_train_conv *l, int way, int backward);

/* A pass by Winograd tiles of pixels, for some of the products' tiles of filters: t0, t1. */
typedef struct cs_winograd_pass {
    const cs_kernels *k;
    cs_winograd tiles;
    const struct cs_train_direct *products;
    int slots;
    int64_t x_image, y_image;
    const float *weights, *bias, *zeros;    /* packed; zeros: the products' bias */
    int64_t coefficient;                    /* floats between the coefficients of the weights */
    int t0, t1;
    /* where weights are not packed but in the order of the layer, each tile's are packed on the way */
    const cs_train_conv *unpacked;
    int backward;
} cs_winograd_pass;

void cs_train_winograd(const cs_winograd_pass *p, int n0, int n1, const float *x, float *y, int add, float *scratch);
cs_winograd_pass cs_train_forward_pass(const cs_train_conv *l, const float *packed, const float *bias,
                                       const cs_activation *activation, const float *zeros);
cs_winograd_pass cs_train_data_pass(const cs_train_conv *l, const float *packed, const float *zeros);
/* The weights of a Winograd pass's tiles [t0, t1): units of one tile and plane, `part` of `parts`. */
void cs_train_pack_winograd(const cs_train_conv *l, int backward, const float *weights, float *packed,
                            int64_t coefficient, int t0, int t1, int part, int parts);
/* floats between the coefficients of one tile's weights, of which none has more */
int64_t cs_train_tile_coefficient(const struct cs_train_direct *d, int block);
/* Of output blocks [b0, b1), into a partial sum that begins with b0; again: for the same images as the
 * last call with this room, whose transforms may still be there. */
void cs_train_weight_gradient(const cs_train_conv *l, const cs_squares *s, int n0, int n1, int b0, int b1,
                              const float *x, const float *dy, float *partial, int add, float *room, int again);
/* likewise: b floats a block */
void cs_train_bias_gradient(const cs_train_conv *l, int n0, int n1, int b0, int b1, const float *dy, float *dbias,
                            int add);
/* Sums of the units [u0, u1), each a plane of an output block, of partial sums that begin with unit `first`. */
void cs_train_reduce_units(const cs_train_conv *l, const cs_squares *s, const float *partials, int count, int first,
                           int u0, int u1, float *dweights);

#endif
