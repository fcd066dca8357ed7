/* All kernels of one instruction set, and its table. Included by isa_*.c. */
#include "vec.h"

#include "math.tmpl.h"

#include "activation.tmpl.h"
#include "transpose.tmpl.h"

#include "conv_pixels.tmpl.h"
#include "conv.tmpl.h"
#include "depthwise.tmpl.h"
#include "layout.tmpl.h"
#include "norm.tmpl.h"
#include "peak.tmpl.h"
#include "pointwise.tmpl.h"
#include "pool.tmpl.h"
#include "winograd6.tmpl.h"
#include "winograd.tmpl.h"
#include "winograd_train.tmpl.h"
#include "train.tmpl.h"

#include "gemm.tmpl.h"
#include "train_norm.tmpl.h"
#include "train_pointwise.tmpl.h"
#include "train_pool.tmpl.h"
#include "train_table.tmpl.h"

#define CS_STRING2(x) #x
#define CS_STRING(x) CS_STRING2(x)

extern const cs_kernels CS_CAT(cs_kernels_, CS_ISA);
const cs_kernels CS_CAT(cs_kernels_, CS_ISA) = {
    .isa = CS_STRING(CS_ISA),
    .block = CS_VL,
    .half = CS_HALF,
    .conv_tile_blocks = conv_tile_blocks,
    .conv_by_pixels = conv_by_pixels,
    .conv_planar_by_pixels = conv_planar_by_pixels,
    .conv_tile_pixels = conv_tile_pixels,
    .conv = conv,
    .winograd_input = winograd_input,
    .winograd_output = winograd_output,
    .winograd_gradient = winograd_gradient,
    .winograd_filter = winograd_filter,
    .winograd_filter_gradient = winograd_filter_gradient,
    .depthwise = depthwise,
    .weight_gradient = weight_gradient,
    .depthwise_gradient = depthwise_gradient,
    .depthwise_scatter = depthwise_scatter,
    .copy = copy,
    .channel_sums = channel_sums,
    .max_pool = max_pool,
    .avg_pool = avg_pool,
    .global_avg_pool = global_avg_pool,
    .global_max_pool = global_max_pool,
    .scale_shift = scale_shift,
    .prelu = prelu,
    .arithmetic = arithmetic,
    .activate = activate,
    .layer_norm = layer_norm,
    .lrn = lrn,
    .softmax = softmax,
    .log_softmax = log_softmax,
    .rearrange = rearrange,
    .pack = pack,
    .unpack = unpack,
    .unpack_far = unpack_far,
    .train = &train_table,
    .peak = peak,
};
