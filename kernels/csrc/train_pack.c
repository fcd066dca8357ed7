/* Packing the weights for the forward pass and the gradient of the input (train_conv.h): once a step. */
#include "train_parts.h"

#include <string.h>

/* weight of (filter, channel) of a direct convolution and of one of its taps; backward, filters are the
 * layer's channels */
static float weight_at(const cs_train_conv *l, const float *weights, int backward, int filter, int channel,
                       int kh, int kw) {
    const int o = backward ? channel : filter, c = backward ? filter : channel;
    const int depth = l->c / l->groups, each = l->o / l->groups;
    if (o / each != c / depth)
        return 0.0f;
    return weights[(((int64_t)o * depth + c % depth) * l->kh + kh) * l->kw + kw];
}

static void pack_direct(const cs_train_conv *l, const struct cs_train_direct *d, int backward, int planar,
                        const float *weights, float *packed, int part, int parts) {
    const int b = l->block, taps_w = planar ? l->kw : d->conv.kw, taps = d->conv.kh * taps_w;
    for (int t = 0; t < d->conv.tiles; t++) {
        const cs_conv_tile *tile = &d->conv.tile[t];
        const int width = tile->blocks * b;
        for (int i = tile->planes * part / parts; i < tile->planes * (part + 1) / parts; i++) {
            const int plane = tile->plane + i, c0 = planar ? plane : plane * b;
            const int channels = planar ? 1 : (int)cs_min(b, d->channels - c0);
            float *to = packed + tile->weight + (int64_t)i * taps * (planar ? 1 : b) * width;
            for (int tap = 0; tap < taps; tap++)
                for (int c = 0; c < channels; c++)
                    for (int lane = 0; lane < width; lane++) {
                        const int filter = tile->block * b + lane;
                        const int kh = d->first_h + tap / taps_w * d->step_h;
                        const int kw = d->first_w + tap % taps_w * d->step_w;
                        *to++ = filter < d->filters
                                    ? weight_at(l, weights, backward, filter, c0 + c, kh, kw) : 0.0f;
                    }
        }
    }
}

static void pack_winograd(const cs_train_conv *l, const struct cs_train_direct *d, int way, int backward,
                          const float *weights, float *packed, int part, int parts) {
    const int b = l->block, m = cs_winograd_m(way);
    const int64_t step = cs_coefficient(d, b);
    float filters[9 * 16];
    for (int t = 0; t < d->conv.tiles; t++) {
        const cs_conv_tile *tile = &d->conv.tile[t];
        const int width = tile->blocks * b;
        for (int c = d->channels * part / parts; c < d->channels * (part + 1) / parts; c++)
            for (int i = 0; i < tile->blocks; i++) {
                for (int tap = 0; tap < 9; tap++)
                    for (int lane = 0; lane < b; lane++) {
                        const int filter = (tile->block + i) * b + lane;
                        filters[tap * b + lane] =
                            filter < d->filters
                                ? weight_at(l, weights, backward, filter, c, tap / 3, tap % 3) : 0.0f;
                    }
                l->kernels->winograd_filter(m, backward, 1, filters, 9 * b, b,
                                            packed + tile->weight + (int64_t)c * width + i * b, width, step);
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

void cs_train_conv_pack(const cs_train_conv *l, const float *weights, float *forward, float *backward,
                        int part, int parts) {
    if (forward) {
        if (l->forward_way == CS_WAY_DEPTHWISE)
            pack_depthwise(l, weights, forward, part, parts);
        else if (cs_is_winograd(l->forward_way))
            pack_winograd(l, &l->direct[0], l->forward_way, 0, weights, forward, part, parts);
        else
            pack_direct(l, &l->direct[0], 0, l->planar, weights, forward, part, parts);
    }
    if (!backward || l->planar)
        return;
    if (l->data_way == CS_WAY_DEPTHWISE)
        pack_depthwise(l, weights, backward, part, parts);
    else if (cs_is_winograd(l->data_way))
        pack_winograd(l, &l->direct[1], l->data_way, 1, weights, backward, part, parts);
    else
        for (int i = 1; i < l->directs; i++)
            pack_direct(l, &l->direct[i], 1, 0, weights, backward + l->direct[i].weight, part, parts);
}
