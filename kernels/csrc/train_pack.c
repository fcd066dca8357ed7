/* Packing the weights for the forward pass and the gradient of the input (train_conv.h): once a step.
 *
 * The unit of work is one tile of output blocks and one plane of channels: the filters of a block are
 * gathered as [channel][tap][b], and then put in their places or into their Winograd form. Backward, the
 * layer's channels are the filters. */
#include "train_parts.h"

#include <string.h>

enum { ROOM = 16 * 9 * 4 };     /* vectors: of 16 channels, filters of 6 x 6 and less */

static float weight_at(const cs_train_conv *l, const float *weights, int backward, int filter, int channel, int tap) {
    const int o = backward ? channel : filter, c = backward ? filter : channel;
    const int depth = l->c / l->groups, taps = l->kh * l->kw;
    if (o / (l->o / l->groups) != c / depth)
        return 0.0f;
    return weights[((int64_t)o * depth + c % depth) * taps + tap];
}

/* Filters [first, first + lanes) of channels [c0, c0 + count), all taps. */
static void gather(const cs_train_conv *l, const float *weights, int backward, int first, int lanes, int c0,
                   int count, float *filters) {
    const cs_kernels *k = l->kernels;
    const int b = l->block, taps = l->kh * l->kw;
    const int64_t row = (int64_t)l->c * taps;
    if (!backward) {
        k->pack(lanes, 0, 1, count * taps, weights + first * row + (int64_t)c0 * taps, row, count * taps, 1,
                filters, (int64_t)count * taps * b, b);
    } else if (taps > 1) {
        k->pack(lanes, 0, count, taps, weights + c0 * row + (int64_t)first * taps, taps, row, 1, filters,
                (int64_t)taps * b, b);
    } else {
        memset(filters, 0, sizeof(float) * count * b);
        for (int i = 0; i < count; i++)
            memcpy(filters + i * b, weights + (c0 + i) * row + first, sizeof(float) * lanes);
    }
}

/* Calls for what `gather` will read of a block's next channels: its rows are too short, and too far from each
 * other, for the processor to foresee them. */
static void gather_ahead(const cs_train_conv *l, const float *weights, int backward, int first, int c0) {
    const int b = l->block, taps = l->kh * l->kw, row = l->c * taps;
    const int rows = (int)cs_min(b, backward ? l->o - c0 : l->o - first);
    for (int i = 0; i < rows; i++) {
        const float *at = weights + (int64_t)((backward ? c0 : first) + i) * row + (backward ? first : c0) * taps;
        for (int j = 0; j < b * taps; j += 16)
            __builtin_prefetch(at + j, 0, 2);
    }
}

/* One unit of a direct convolution: packed[tap][channel][blocks * b]. */
static void pack_direct(const cs_train_conv *l, const struct cs_train_direct *d, int backward,
                        const float *weights, int block, int blocks, int c0, int channels, float *packed) {
    const int b = l->block, width = blocks * b, all = l->kh * l->kw;
    const int columns = backward ? d->conv.kw : l->kw, taps = d->conv.kh * columns;
    const int whole = l->groups == 1 && channels * all <= ROOM;
    float filters[ROOM * 16];
    for (int i = 0; i < blocks; i++) {
        const int first = (block + i) * b, lanes = (int)cs_min(b, d->filters - first);
        if (whole)
            gather(l, weights, backward, first, lanes, c0, channels, filters);
        for (int tap = 0; tap < taps; tap++) {
            const int kh = d->first_h + tap / columns * d->step_h, kw = d->first_w + tap % columns * d->step_w;
            float *to = packed + (int64_t)tap * channels * width + i * b;
            for (int c = 0; c < channels; c++, to += width)
                if (whole)
                    memcpy(to, filters + ((int64_t)c * all + kh * l->kw + kw) * b, sizeof(float) * b);
                else
                    for (int lane = 0; lane < b; lane++)
                        to[lane] = lane < lanes ? weight_at(l, weights, backward, first + lane, c0 + c,
                                                            kh * l->kw + kw) : 0.0f;
        }
    }
}

/* The same for Winograd's products: [coefficient][channel][blocks * b]. */
static void pack_winograd(const cs_train_conv *l, const struct cs_train_direct *d, int m, int backward,
                          const float *weights, int block, int blocks, int c0, int channels, float *packed,
                          int64_t coefficient) {
    const int b = l->block, width = blocks * b;
    float filters[ROOM * 16];
    for (int i = 0; i < blocks; i++) {
        const int first = (block + i) * b, lanes = (int)cs_min(b, d->filters - first);
        gather(l, weights, backward, first, lanes, c0, channels, filters);
        if (c0 + b < d->channels)
            gather_ahead(l, weights, backward, first, c0 + b);
        l->kernels->winograd_filter(m, backward, channels, filters, 9 * b, b, packed + i * b, width, coefficient);
    }
}

void cs_train_pack_winograd(const cs_train_conv *l, int backward, const float *weights, float *packed,
                            int64_t coefficient, int t0, int t1, int part, int parts) {
    const struct cs_train_direct *d = &l->direct[backward];
    const int b = l->block, m = cs_winograd_m(backward ? l->data_way : l->forward_way);
    int unit = 0;
    for (int t = t0; t < t1; t++) {
        const cs_conv_tile *tile = &d->conv.tile[t];
        float *to = packed + tile->weight - d->conv.tile[t0].weight;
        for (int p = tile->plane; p < tile->plane + tile->planes; p++) {
            const int channels = (int)cs_min(b, d->channels - p * b);
            if (unit++ % parts == part)
                pack_winograd(l, d, m, backward, weights, tile->block, tile->blocks, p * b, channels, to, coefficient);
            to += (int64_t)channels * tile->blocks * b;
        }
    }
}

static void pack_units(const cs_train_conv *l, const struct cs_train_direct *d, int backward, const float *weights,
                       float *packed, int part, int parts) {
    const int b = l->block, planar = l->planar && !backward;
    const int taps = d->conv.kh * (backward ? d->conv.kw : l->kw);
    int unit = 0;
    for (int t = 0; t < d->conv.tiles; t++) {
        const cs_conv_tile *tile = &d->conv.tile[t];
        float *to = packed + tile->weight;
        for (int p = tile->plane; p < tile->plane + tile->planes; p++) {
            const int c0 = planar ? p : p * b, channels = planar ? 1 : (int)cs_min(b, d->channels - c0);
            if (unit++ % parts == part)
                pack_direct(l, d, backward, weights, tile->block, tile->blocks, c0, channels, to);
            to += (int64_t)taps * channels * tile->blocks * b;
        }
    }
}

static void pack_depthwise(const cs_train_conv *l, const float *weights, float *packed, int part, int parts) {
    const int b = l->block, taps = l->kh * l->kw;
    for (int i = l->blocks * part / parts; i < l->blocks * (part + 1) / parts; i++)
        for (int lane = 0; lane < b && i * b + lane < l->c; lane++)
            for (int tap = 0; tap < taps; tap++)
                packed[((int64_t)i * taps + tap) * b + lane] = weights[(int64_t)(i * b + lane) * taps + tap];
}

static void pack_all_winograd(const cs_train_conv *l, int backward, const float *weights, float *packed, int part,
                              int parts) {
    const struct cs_train_direct *d = &l->direct[backward];
    cs_train_pack_winograd(l, backward, weights, packed, cs_coefficient(d->floats, l->block), 0, d->conv.tiles, part,
                           parts);
}

void cs_train_conv_pack(const cs_train_conv *l, const float *weights, float *forward, float *backward,
                        int part, int parts) {
    if (forward && l->forward_way == CS_WAY_DEPTHWISE)
        pack_depthwise(l, weights, forward, part, parts);
    else if (forward && cs_is_winograd(l->forward_way))
        pack_all_winograd(l, 0, weights, forward, part, parts);
    else if (forward)
        pack_units(l, &l->direct[0], 0, weights, forward, part, parts);
    if (!backward || l->directs == 1)
        return;
    if (l->data_way == CS_WAY_DEPTHWISE)
        pack_depthwise(l, weights, backward, part, parts);
    else if (cs_is_winograd(l->data_way))
        pack_all_winograd(l, 1, weights, backward, part, parts);
    else
        for (int i = 1; i < l->directs; i++)
            pack_units(l, &l->direct[i], 1, weights, backward + l->direct[i].weight, part, parts);
}
