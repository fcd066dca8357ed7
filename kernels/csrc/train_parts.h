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
static inline int64_t cs_coefficient(const struct cs_train_direct *d, int block) { return d->floats + block; }

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

cs_squares cs_train_squares(const cs_train_conv *l);
cs_window cs_train_window_x(const cs_train_conv *l);
cs_window cs_train_window_dy(const cs_train_conv *l);
/* One image of `planes` planes (blocks, or NCHW with planar) into scratch memory with zeros around. */
void cs_train_stage(const cs_kernels *k, const cs_window *v, int planar, int planes, int h, int w,
                    const float *x, int64_t plane, int64_t row, float *staged);
/* the geometry of a pass's Winograd tiles */
cs_winograd cs_train_tiles(const cs_train_conv *l, int way, int backward);

#endif
