/* The three passes of a convolution in training: forward, the gradient of its input ("data gradient")
 * and that of its weights ("weight gradient").
 *
 *     cs_train_conv l = {.kernels = ..., .images = ..., .c = ..., ...};     the fields of "given"
 *     cs_train_conv_init(&l);                     chooses kernels by shapes; sizes of all memory
 *     each step, all by one or several threads:
 *         cs_train_conv_pack(&l, weights, forward, backward, part, parts);
 *       barrier
 *         cs_train_conv_forward(&l, n0, n1, x, forward, bias, activation, y, sums, scratch);
 *       ... the loss, then for each range of images:
 *         cs_train_conv_weight_gradient(&l, n0, n1, f0, f1, x, dy, partial, add, scratch);
 *         cs_train_conv_data_gradient(&l, n0, n1, dy, backward, dx, add, scratch);
 *       barrier
 *         cs_train_conv_reduce(&l, partials, count, dweights, dbias, part, parts);
 *     cs_train_conv_free(&l);
 *
 * A layer whose weights are large beside its images ("by filters") would have them packed, fetched, and
 * its gradient summed far from the caches. For it there are passes over the whole batch for a part of
 * the filters (or of the input's channels): they pack that part of the weights, or finish that part of
 * the gradient, themselves.
 *
 * All functions are single-threaded; the caller splits by images (forward, data gradient), by images
 * or filters (weight gradient), or by parts (pack, reduce). Results of the forward pass and of the
 * data gradient are the same bits for any split; those of the weight gradient depend on the ranges of
 * images and on the number of partial sums, not on who computed which.
 *
 * Tensors are blocked (cs.h), or NCHW for an input with l.planar. Pointers are to the first pixel,
 * behind the halo, of image 0 of the batch. A tensor may carry a halo of zeros; where that is as wide
 * as a pass wants (want_x, want_dy) it is read in place, otherwise each image is copied with its padding
 * into scratch memory first, which takes a few per cent. Surplus channels may hold anything.
 *
 * Calls of few images suit the caches: a thread that goes depth-first makes a few images of one
 * layer's dy and calls both gradients on them while they are warm. l.batch says how many images a call
 * should have at the least, where fewer would leave the register tiles of small images half empty. */
#ifndef CS_TRAIN_CONV_H
#define CS_TRAIN_CONV_H

#include "cs.h"

/* Floats between images, planes and rows; pixels are a block (NCHW: one float) apart. halo: zeros on
 * each side of each image, which the steps include. */
typedef struct cs_train_layout {
    int64_t image, plane, row;
    int32_t halo;
} cs_train_layout;

enum cs_train_way {
    CS_WAY_AUTO = 0,        /* as init finds best */
    CS_WAY_DIRECT,
    CS_WAY_WINOGRAD2,       /* F(2 x 2, 3 x 3) */
    CS_WAY_WINOGRAD4,       /* F(4 x 4, 3 x 3) */
    CS_WAY_DEPTHWISE
};

struct cs_train_direct;     /* a direct convolution and its tiles */

typedef struct cs_train_conv {
    /* given */
    const cs_kernels *kernels;
    int32_t images;                     /* of a batch, at the most */
    int32_t c, h, w, o, oh, ow;
    int32_t kh, kw, sh, sw, pt, pl, dh, dw;     /* padding at the end follows from the sizes */
    int32_t groups;
    int32_t planar;                     /* x is NCHW; for c < 8, and then there is no data gradient */
    int32_t bias;                       /* whether there is one, whose gradient is wanted */
    cs_train_layout x, y, dx, dy;
    int32_t forward_way, data_way, weight_way;  /* CS_WAY_AUTO; others as a wish, for tests: where it
                                                   does not fit, init replaces it */

    /* set by init */
    int32_t want_x, want_dy;            /* the halo that spares copies */
    int32_t batch;                      /* images a call should have, where there are so many */
    int32_t filter_parts;               /* f0, f1 of the weight gradient lie within [0, filter_parts] */
    int32_t forward_parts, data_parts, weight_parts;    /* of a pass that had better go by filters; else 0 */
    int64_t forward_floats, backward_floats;    /* packed weights */
    int64_t partial_floats;             /* one partial sum of the weight gradient, dbias included */
    int64_t scratch_floats;             /* of each thread, for any of the passes */
    int64_t sums_doubles;               /* of `sums`: 2 blocks * b */

    /* the rest is the implementation's */
    int32_t block, planes, blocks;      /* planes of x; output blocks */
    struct cs_train_direct *direct;     /* [0] forward, then one for each residue of the stride */
    int32_t directs;
    int32_t forward_slots, data_slots, weight_slots;    /* Winograd tiles a pass */
    int64_t staged_x, staged_dy;        /* floats of one padded image in scratch memory */
} cs_train_conv;

/* 0, or -1 without memory. */
int cs_train_conv_init(cs_train_conv *l);
void cs_train_conv_free(cs_train_conv *l);

/* weights: float[o][c / groups][kh][kw]; part p of `parts` parts of both packed forms (either may be
 * NULL). All memory of `forward` and `backward` must have been zero before the first call. */
void cs_train_conv_pack(const cs_train_conv *l, const float *weights, float *forward, float *backward,
                        int part, int parts);

/* y = activation(conv(x) + bias) of images [n0, n1). bias: float[o] or NULL; activation may be NULL.
 * sums: NULL, or double[2][blocks * b], to which the sums and the sums of squares of what is stored
 * are added for each channel (batch norm's statistics). */
void cs_train_conv_forward(const cs_train_conv *l, int n0, int n1, const float *x, const float *forward,
                           const float *bias, const cs_activation *activation, float *y, double *sums,
                           float *scratch);

/* dx = (or with `add`: +=) gradient of the input, images [n0, n1). */
void cs_train_conv_data_gradient(const cs_train_conv *l, int n0, int n1, const float *dy,
                                 const float *backward, float *dx, int add, float *scratch);

/* partial = (or with `add`: +=) gradient of the weights and the bias from images [n0, n1), for the
 * parts [f0, f1) of the filters. */
void cs_train_conv_weight_gradient(const cs_train_conv *l, int n0, int n1, int f0, int f1, const float *x,
                                   const float *dy, float *partial, int add, float *scratch);

/* Sums `count` partial sums, partial_floats apart, in their order. dweights: float[o][c / groups][kh][kw],
 * dbias: float[o] or NULL; this call's part of them. */
void cs_train_conv_reduce(const cs_train_conv *l, const float *partials, int count, float *dweights, float *dbias,
                          int part, int parts);

/* By filters, images [0, n): one of the forward_parts, data_parts or weight_parts; weights, dweights and
 * dbias as above. Results of the first two are the bits of the passes by images. */
void cs_train_conv_forward_part(const cs_train_conv *l, int n, int part, const float *x, const float *weights,
                                const float *bias, const cs_activation *activation, float *y, float *scratch);
void cs_train_conv_data_part(const cs_train_conv *l, int n, int part, const float *dy, const float *weights,
                             float *dx, int add, float *scratch);
void cs_train_conv_weight_part(const cs_train_conv *l, int n, int part, const float *x, const float *dy,
                               float *dweights, float *dbias, float *scratch);

#endif
