"""The passes of a convolution in training (csrc/train_conv.h)."""

from libc.stdint cimport int32_t, int64_t

from convserve.kernels._core cimport Buffer, cs_activation, cs_kernels

cdef extern from "train_conv.h" nogil:
    ctypedef struct cs_train_layout:
        int64_t image, plane, row
        int32_t halo

    ctypedef struct cs_train_conv:
        const cs_kernels *kernels
        int32_t images
        int32_t c, h, w, o, oh, ow, kh, kw, sh, sw, pt, pl, dh, dw, groups, planar, bias
        cs_train_layout x, y, dx, dy
        int32_t forward_way, data_way, weight_way
        int32_t want_x, want_dy, batch, filter_parts, forward_parts, data_parts, weight_parts
        int64_t forward_floats, backward_floats, partial_floats, scratch_floats, sums_doubles
        int32_t block, planes, blocks

    int cs_train_conv_init(cs_train_conv *l)
    void cs_train_conv_free(cs_train_conv *l)
    void cs_train_conv_pack(const cs_train_conv *l, const float *weights, float *forward,
                            float *backward, int part, int parts)
    void cs_train_conv_forward(const cs_train_conv *l, int n0, int n1, const float *x,
                               const float *forward, const float *bias,
                               const cs_activation *activation, float *y, double *sums,
                               float *scratch)
    void cs_train_conv_data_gradient(const cs_train_conv *l, int n0, int n1, const float *dy,
                                     const float *backward, float *dx, int add, float *scratch)
    void cs_train_conv_weight_gradient(const cs_train_conv *l, int n0, int n1, int f0, int f1,
                                       const float *x, const float *dy, float *partial, int add,
                                       float *scratch)
    void cs_train_conv_reduce(const cs_train_conv *l, const float *partials, int count,
                              float *dweights, float *dbias, int part, int parts)
    void cs_train_conv_forward_part(const cs_train_conv *l, int n, int part, const float *x,
                                    const float *weights, const float *bias,
                                    const cs_activation *activation, float *y, float *scratch)
    void cs_train_conv_data_part(const cs_train_conv *l, int n, int part, const float *dy,
                                 const float *weights, float *dx, int add, float *scratch)
    void cs_train_conv_weight_part(const cs_train_conv *l, int n, int part, const float *x,
                                   const float *dy, float *dweights, float *dbias, float *scratch)
