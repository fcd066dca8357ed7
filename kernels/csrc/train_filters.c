/* The passes that go by filters (train_conv.h): of all images, each part with weights of its own. */
#include "train_parts.h"

#include <string.h>

static void winograd_part(const cs_train_conv *l, cs_winograd_pass *p, int n, int part, int parts, const float *x,
                          float *y, int add, float *room) {
    const int tiles = p->products->conv.tiles;
    p->unpacked = l;
    p->coefficient = cs_train_tile_coefficient(p->products, l->block);
    p->t0 = tiles * part / parts;
    p->t1 = tiles * (part + 1) / parts;
    cs_train_winograd(p, 0, n, x, y, add, room);
}

void cs_train_conv_forward_part(const cs_train_conv *l, int n, int part, const float *x, const float *weights,
                                const float *bias, const cs_activation *activation, float *y, float *scratch) {
    const int64_t wide = cs_max(l->planes, l->blocks) * l->block;
    memset(scratch, 0, sizeof(float) * 2 * wide);
    if (bias)
        memcpy(scratch, bias, sizeof(float) * l->o);
    cs_winograd_pass p = cs_train_forward_pass(l, weights, scratch, activation, scratch + wide);
    winograd_part(l, &p, n, part, l->forward_parts, x, y, 0, scratch + 2 * wide);
}

void cs_train_conv_data_part(const cs_train_conv *l, int n, int part, const float *dy, const float *weights,
                             float *dx, int add, float *scratch) {
    const int64_t wide = cs_max(l->planes, l->blocks) * l->block;
    memset(scratch, 0, sizeof(float) * 2 * wide);
    cs_winograd_pass p = cs_train_data_pass(l, weights, scratch);
    winograd_part(l, &p, n, part, l->data_parts, dy, dx, add, scratch + 2 * wide);
}

void cs_train_conv_weight_part(const cs_train_conv *l, int n, int part, const float *x, const float *dy,
                               float *dweights, float *dbias, float *scratch) {
    const int pairs = (l->blocks + 1) / 2, first = 2 * (pairs * part / l->weight_parts);
    const int end = (int)cs_min(2 * (pairs * (part + 1) / l->weight_parts), l->blocks);
    const int planes = l->weight_way == CS_WAY_DEPTHWISE ? 1 : l->planes;
    const cs_squares s = cs_train_squares(l, 2);
    float *partial = scratch, *room = scratch + s.floats;
    for (int b0 = first; b0 < end; b0 += 2) {
        const int b1 = (int)cs_min(b0 + 2, end), o = b0 * l->block;
        cs_train_weight_gradient(l, &s, 0, n, b0, b1, x, dy, partial, 0, room, b0 > first);
        cs_train_reduce_units(l, &s, partial, 1, b0 * planes, b0 * planes, b1 * planes, dweights);
        if (dbias) {
            cs_train_bias_gradient(l, 0, n, b0, b1, dy, partial + s.bias, 0);
            memcpy(dbias + o, partial + s.bias, sizeof(float) * (cs_min(b1 * l->block, l->o) - o));
        }
    }
}
