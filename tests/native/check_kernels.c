/* The kernels of every instruction set of this build and CPU against plain loops in double.
 *
 * The Python tests say more, but need Python: this runs where there is only a C compiler for the
 * machine, such as under an emulator. */
#include "check.h"
#include "cs.h"

#include <float.h>

static const cs_kernels *k;
static int b;   /* channels a block */
static const cs_activation linear = {-INFINITY, INFINITY, CS_NO_CURVE, 0, 0};
static const cs_activation relu = {0, INFINITY, CS_NO_CURVE, 0, 0};

static int blocks_of(int channels) { return (channels + b - 1) / b; }

/* channel c of pixel (h, w) of a blocked image of rows of w_all pixels and planes of h_all rows */
static int64_t at(int c, int h, int w, int h_all, int w_all) {
    return (((int64_t)(c / b) * h_all + h) * w_all + w) * b + c % b;
}

/* A layer of `filters` filters of size x size over `channels` channels, by one path of the kernel. */
typedef struct layer {
    int channels, filters, size, stride, oh, ow, planar, residual;
    int h, w;           /* of the input, its padding included */
    float *x, *weight, *bias, *r;
} layer;

static layer make_layer(int channels, int filters, int size, int stride, int oh, int ow, int planar,
                        int residual) {
    layer l = {channels, filters, size, stride, oh, ow, planar, residual,
               (oh - 1) * stride + size, (ow - 1) * stride + size, NULL, NULL, NULL, NULL};
    l.x = floats((int64_t)(planar ? channels : blocks_of(channels) * b) * l.h * l.w);
    l.weight = floats((int64_t)filters * channels * size * size);
    l.bias = floats(blocks_of(filters) * b);
    l.r = floats((int64_t)blocks_of(filters) * b * oh * ow);
    return l;
}

static float layer_x(const layer *l, int c, int h, int w) {
    return l->x[l->planar ? ((int64_t)c * l->h + h) * l->w + w : at(c, h, w, l->h, l->w)];
}

static float layer_weight(const layer *l, int o, int c, int i, int j) {
    return l->weight[(((int64_t)o * l->channels + c) * l->size + i) * l->size + j];
}

static void check_layer(const layer *l, const char *what, const float *y, double bound) {
    for (int o = 0; o < l->filters; o++)
        for (int h = 0; h < l->oh; h++)
            for (int w = 0; w < l->ow; w++) {
                double sum = l->bias[o];
                for (int c = 0; c < l->channels; c++)
                    for (int i = 0; i < l->size; i++)
                        for (int j = 0; j < l->size; j++)
                            sum += (double)layer_x(l, c, h * l->stride + i, w * l->stride + j) *
                                   layer_weight(l, o, c, i, j);
                if (l->residual)
                    sum += l->r[at(o, h, w, l->oh, l->ow)];
                check(k->isa, what, y[at(o, h, w, l->oh, l->ow)], sum > 0 ? sum : 0, bound);
            }
}

static void free_layer(layer *l) {
    free(l->x);
    free(l->weight);
    free(l->bias);
    free(l->r);
}

/* Output blocks first .. first + size as the kernel's tile, and its weights in that order. */
static int lay_tiles(const layer *l, cs_conv_tile *tiles, float *packed) {
    const int blocks = blocks_of(l->filters), planes = l->planar ? l->channels : blocks_of(l->channels);
    int n = 0, size = k->conv_tile_blocks(l->ow, blocks);
    int64_t place = 0;
    for (int first = 0; first < blocks; first += tiles[n++].blocks) {
        while (size > blocks - first)
            size /= 2;
        tiles[n] = (cs_conv_tile){first, size, 0, planes, place};
        for (int p = 0; p < planes; p++) {
            const int depth = l->planar ? 1 : l->channels - p * b < b ? l->channels - p * b : b;
            for (int i = 0; i < l->size; i++)
                for (int j = 0; j < l->size; j++)
                    for (int c = 0; c < depth; c++)
                        for (int lane = 0; lane < size * b; lane++) {
                            const int o = first * b + lane;
                            const int channel = l->planar ? p : p * b + c;
                            packed[place++] = o < l->filters ? layer_weight(l, o, channel, i, j) : 0;
                        }
        }
    }
    return n;
}

static void check_conv(int channels, int filters, int size, int stride, int oh, int ow, int planar) {
    layer l = make_layer(channels, filters, size, stride, oh, ow, planar, filters % 2);
    const int px = planar ? 1 : b, planes = planar ? channels : blocks_of(channels);
    const int64_t y_plane = (int64_t)oh * ow * b;
    cs_conv_tile tiles[64];
    float *packed = floats((int64_t)planes * px * size * size * blocks_of(filters) * b);
    float *y = floats(blocks_of(filters) * y_plane);
    const int last = planar ? size : channels - (planes - 1) * b;
    cs_conv p = {
        .oh = oh, .ow = ow, .kh = size, .kw = planar ? 1 : size, .inner = planar ? size : b,
        .inner_last = last, .last_plane = planes - 1, .activation = relu,
        .x_plane = (int64_t)l.h * l.w * px, .x_kh = (int64_t)l.w * px, .x_kw = px, .x_px = stride * px,
        .x_oh = (int64_t)stride * l.w * px, .y_block = y_plane, .y_row = (int64_t)ow * b, .y_px = b,
        .r_block = y_plane, .r_row = (int64_t)ow * b, .r_px = b, .filters = filters,
    };
    p.tiles = lay_tiles(&l, tiles, packed);
    p.tile = tiles;
    const int by_pixels = planar && stride == 1 && ow >= b && !l.residual;
    for (p.pixels = 0; p.pixels <= by_pixels; p.pixels++) {
        memset(y, 0xff, sizeof(float) * blocks_of(filters) * y_plane);
        for (int t = 0; t < p.tiles; t++)
            k->conv(&p, t, 0, oh, l.x, packed, l.bias, l.residual ? l.r : NULL, y);
        check_layer(&l, p.pixels ? "convolution by pixels" : planar ? "planar convolution" : "convolution", y,
                    channels * size * size * 2 * (double)FLT_EPSILON);
    }
    free(packed);
    free(y);
    free_layer(&l);
}

/* u = g w g' of the points that the transforms belong to: one row of g per coefficient */
static void winograd_weight(int m, const layer *l, int o, int c, double u[64]) {
    const double s = sqrt(2.0);
    const double g4[6][3] = {{1, 0, 0}, {-2 / 3.0, -s / 3, -1 / 3.0}, {-2 / 3.0, s / 3, -1 / 3.0},
                             {1 / 6.0, s / 6, 1 / 3.0}, {1 / 6.0, -s / 6, 1 / 3.0}, {0, 0, 1}};
    const double g2[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
    const double g6[8][3] = {{1, 0, 0}, {-2 / 9.0, -2 / 9.0, -2 / 9.0}, {-2 / 9.0, 2 / 9.0, -2 / 9.0},
                             {1 / 90.0, 1 / 45.0, 2 / 45.0}, {1 / 90.0, -1 / 45.0, 2 / 45.0},
                             {1 / 45.0, 1 / 90.0, 1 / 180.0}, {1 / 45.0, -1 / 90.0, 1 / 180.0}, {0, 0, 1}};
    const double (*g)[3] = m == 6 ? g6 : m == 4 ? g4 : g2;
    for (int i = 0; i < m + 2; i++)
        for (int j = 0; j < m + 2; j++) {
            u[i * (m + 2) + j] = 0;
            for (int p = 0; p < 3; p++)
                for (int q = 0; q < 3; q++)
                    u[i * (m + 2) + j] += g[i][p] * layer_weight(l, o, c, p, q) * g[j][q];
        }
}

static void check_winograd(int m, int channels, int filters, int oh, int ow) {
    layer l = make_layer(channels, filters, 3, 1, oh, ow, 0, 1);
    const int planes = blocks_of(channels), blocks = blocks_of(filters), n = (m + 2) * (m + 2);
    const int64_t y_plane = (int64_t)oh * ow * b;
    const cs_winograd p = {
        .m = m, .planes = planes, .blocks = blocks, .h = l.h, .w = l.w, .oh = oh, .ow = ow,
        .rows = (oh + m - 1) / m, .columns = (ow + m - 1) / m, .activation = relu,
        .x_plane = (int64_t)l.h * l.w * b, .x_row = (int64_t)l.w * b, .y_block = y_plane,
        .y_row = (int64_t)ow * b, .r_block = y_plane, .r_row = (int64_t)ow * b,
    };
    const int slots = p.rows * p.columns;
    const int64_t v_step = cs_winograd_step(planes, slots, b), m_step = cs_winograd_step(blocks, slots, b);
    float *v = floats(n * v_step), *products = floats(n * m_step), *y = floats(blocks * y_plane);
    k->winograd_input(&p, 0, slots, l.x, v, 0, slots);
    for (int o = 0; o < filters; o++)
        for (int t = 0; t < slots; t++) {
            double sums[64] = {0}, u[64];
            for (int c = 0; c < channels; c++) {
                winograd_weight(m, &l, o, c, u);
                for (int i = 0; i < n; i++)
                    sums[i] += u[i] * v[i * v_step + ((int64_t)(c / b) * slots + t) * b + c % b];
            }
            for (int i = 0; i < n; i++)
                products[i * m_step + ((int64_t)(o / b) * slots + t) * b + o % b] = (float)sums[i];
        }
    k->winograd_output(&p, 0, blocks, 0, slots, products, 0, slots, l.bias, l.r, y);
    const char *name = m == 6 ? "F(6, 3)" : m == 4 ? "F(4, 3)" : "F(2, 3)";
    check_layer(&l, name, y, channels * 9 * (m == 6 ? 128 : 16) * (double)FLT_EPSILON);
    free(v);
    free(products);
    free(y);
    free_layer(&l);
}

static void check_depthwise(int size, int stride, int dilation, int oh, int ow) {
    const int extent = (size - 1) * dilation + 1;
    const int h = (oh - 1) * stride + extent, w = (ow - 1) * stride + extent;
    float *x = floats((int64_t)2 * h * w * b), *weight = floats(2 * size * size * b);
    float *bias = floats(2 * b), *y = floats((int64_t)2 * oh * ow * b);
    const cs_depthwise p = {oh, ow, size, size, relu, (int64_t)h * w * b, (int64_t)dilation * w * b,
                            dilation * b, stride * b, (int64_t)stride * w * b, (int64_t)oh * ow * b,
                            (int64_t)ow * b};
    for (int block = 0; block < 2; block++)
        k->depthwise(&p, block, 0, oh, x, weight, bias, y);
    for (int c = 0; c < 2 * b; c++)
        for (int i = 0; i < oh * ow; i++) {
            double sum = bias[c];
            for (int t = 0; t < size * size; t++)
                sum += (double)weight[at(c, t / size, t % size, size, size)] *
                       x[at(c, i / ow * stride + t / size * dilation,
                            i % ow * stride + t % size * dilation, h, w)];
            check(k->isa, "depthwise", y[at(c, i / ow, i % ow, oh, ow)], sum > 0 ? sum : 0,
                  size * size * 2 * (double)FLT_EPSILON);
        }
    free(x);
    free(weight);
    free(bias);
    free(y);
}

static void check_pools(int h, int w, int size, int stride, int padding) {
    const int oh = (h + 2 * padding - size) / stride + 1, ow = (w + 2 * padding - size) / stride + 1;
    const cs_pool p = {h, w, oh, ow, size, size, stride, stride, padding, padding, padding, padding, 0,
                       (int64_t)w * b, (int64_t)h * w * b, (int64_t)ow * b, (int64_t)oh * ow * b};
    float *x = floats((int64_t)2 * h * w * b), *y = floats((int64_t)2 * oh * ow * b);
    float *mean = floats((int64_t)2 * oh * ow * b);
    for (int block = 0; block < 2; block++) {
        k->max_pool(&p, block, 0, oh, x, y);
        k->avg_pool(&p, block, 0, oh, x, mean);
    }
    for (int c = 0; c < 2 * b; c++)
        for (int i = 0; i < oh * ow; i++) {
            double best = -INFINITY, sum = 0, count = 0;
            for (int t = 0; t < size * size; t++) {
                const int row = i / ow * stride - padding + t / size, column = i % ow * stride - padding + t % size;
                if (row < 0 || row >= h || column < 0 || column >= w)
                    continue;
                const float value = x[at(c, row, column, h, w)];
                best = value > best ? value : best;
                sum += value;
                count++;
            }
            check(k->isa, "max pool", y[at(c, i / ow, i % ow, oh, ow)], best, 0);
            check(k->isa, "average pool", mean[at(c, i / ow, i % ow, oh, ow)], sum / count, 1e-6);
        }
    k->global_max_pool(h, w, (int64_t)w * b, x, y);
    k->global_avg_pool(h, w, (int64_t)w * b, x, mean);
    for (int c = 0; c < b; c++) {
        double best = -INFINITY, sum = 0;
        for (int i = 0; i < h * w; i++) {
            best = fmax(best, x[i * b + c]);
            sum += x[i * b + c];
        }
        check(k->isa, "global max pool", y[c], best, 0);
        check(k->isa, "global average pool", mean[c], sum / (h * w), 1e-6);
    }
    free(x);
    free(y);
    free(mean);
}

static double curve(const cs_activation *f, double v) {
    const double s = 1 / (1 + exp(-v));
    switch (f->curve) {
    case CS_LEAKY_RELU: return v > 0 ? v : f->a * v;
    case CS_ELU: return v > 0 ? v : f->a * expm1(v);
    case CS_SIGMOID: return s;
    case CS_HARD_SIGMOID: return fmin(fmax(f->a * v + f->b, 0), 1);
    case CS_HARD_SWISH: return v * fmin(fmax(v / 6 + 0.5, 0), 1);
    case CS_SILU: return v * s;
    case CS_GELU: return 0.5 * v * (1 + erf(v / sqrt(2)));
    case CS_GELU_TANH: return 0.5 * v * (1 + tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
    case CS_TANH: return tanh(v);
    case CS_EXP: return exp(v);
    default: return v < f->low ? f->low : v > f->high ? f->high : v;
    }
}

static void check_activations(void) {
    const int n = 40;
    float *x = floats(n * b), *y = floats(n * b);
    for (int i = 0; i < n * b; i++)
        x[i] *= 9;
    for (int c = CS_NO_CURVE; c <= CS_EXP; c++) {
        const cs_activation f = {-1, 2, c, 0.2f, 0.5f};
        k->activate(&f, n, x, b, y, b);
        for (int i = 0; i < n * b; i++)
            check(k->isa, "activation", y[i], curve(&f, x[i]), 2e-6 * fmax(1, fabs(curve(&f, x[i]))));
    }
    const float special[] = {NAN, INFINITY, -INFINITY, 5, -5, 0};
    for (int s = 0; s < 6; s++) {
        for (int i = 0; i < b; i++)
            x[i] = special[s];
        const cs_activation f = {0, 6, CS_NO_CURVE, 0, 0};
        k->activate(&f, 1, x, b, y, b);
        check(k->isa, "bounds", y[b - 1], isnan(special[s]) ? NAN : curve(&f, special[s]), 0);
    }
    free(x);
    free(y);
}

static void check_softmax(int64_t n) {
    float *x = floats(n), *y = floats(n), *logs = floats(n);
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += exp(x[i] *= 20);
    k->softmax(n, x, y);
    k->log_softmax(n, x, logs);
    for (int64_t i = 0; i < n; i++) {
        check(k->isa, "softmax", y[i], exp(x[i]) / sum, 1e-6);
        check(k->isa, "log softmax", logs[i], x[i] - log(sum), 1e-5);
    }
    free(x);
    free(y);
    free(logs);
}

static void check_pixelwise(int h, int w) {
    const int64_t n = (int64_t)h * w * b, row = (int64_t)w * b;
    float *x = floats(n), *other = floats(n), *y = floats(n), *scale = floats(b), *shift = floats(b);
    cs_pointwise p = {h, w, CS_ADD, linear, b, row, n, b, row, n, row, n};
    for (p.arithmetic = CS_ADD; p.arithmetic <= CS_MUL; p.arithmetic++) {
        k->arithmetic(&p, 0, 0, h, x, other, y);
        for (int64_t i = 0; i < n; i++) {
            const double u = x[i], v = other[i];
            check(k->isa, "arithmetic", y[i],
                  p.arithmetic == CS_ADD ? u + v : p.arithmetic == CS_SUB ? u - v : u * v, 2e-7);
        }
    }
    k->scale_shift(&p, 0, 0, h, x, scale, shift, y);
    for (int64_t i = 0; i < n; i++)
        check(k->isa, "scale and shift", y[i], (double)x[i] * scale[i % b] + shift[i % b], 2e-7);
    k->prelu(&p, 0, 0, h, x, scale, y);
    for (int64_t i = 0; i < n; i++)
        check(k->isa, "PReLU", y[i], x[i] > 0 ? x[i] : (double)x[i] * scale[i % b], 1e-7);
    /* NCHW and back */
    k->pack(b - 1, 0, h, w, x, (int64_t)h * w, w, 1, y, row, b);
    k->unpack(b - 1, 0, h, w, y, row, other, (int64_t)h * w, w);
    for (int64_t i = 0; i < (int64_t)(b - 1) * h * w; i++)
        check(k->isa, "pack and unpack", other[i], x[i], 0);
    free(x);
    free(other);
    free(y);
    free(scale);
    free(shift);
}

/* Rows past the caches, from a place that is aligned and from others. */
static void check_far(void) {
    const int w = 3 * b, rows = 2, channels = b - 1;
    const int64_t area = (int64_t)rows * w;
    float *x = floats(area * b), *near = floats(area * b), *far = floats(area * b + b);
    k->unpack(channels, 0, rows, w, x, (int64_t)w * b, near, area, w);
    for (int start = 0; start < b; start += b / 4) {
        k->unpack_far(channels, 0, rows, w, x, (int64_t)w * b, far + start, area, w);
        for (int64_t i = 0; i < channels * area; i++)
            check(k->isa, "unpack past the caches", far[start + i], near[i], 0);
    }
    free(x);
    free(near);
    free(far);
}

int main(void) {
    const char *names[8];
    const int count = cs_available(names, 8);
    for (int i = 0; i < count; i++) {
        k = cs_kernels_for(names[i]);
        b = k->block;
        for (int ow = 1; ow <= 15; ow++)
            check_conv(b + 3, 5 * b - 1, ow % 2 ? 3 : 1, 1, 2, ow, 0);
        check_conv(2 * b, 3 * b, 3, 2, 3, 7, 0);
        for (int ow = 4; ow <= 7; ow++)     /* two rows at a time, and a last one */
            for (int stride = 1; stride <= 2; stride++)
                check_conv(b + 3, 3 * b - 1, 3, stride, 3, ow, 0);
        check_conv(b, b + 1, 3, 3, 3, 7, 0);
        for (int ow = 1; ow <= 2 * b + 3; ow++)
            check_conv(3, 2 * b + 1 + ow % 2, 5, 1 + ow % 4 / 2, 2, ow, 1);
        for (int size = 1; size <= 9; size += 2)
            for (int m = 2; m <= 6; m += 2)
                check_winograd(m, b + 2, 2 * b - 1, size, size + 1);
        for (int size = 3; size <= 7; size += 2)
            for (int stride = 1; stride <= 2; stride++)
                check_depthwise(size, stride, 1, 3, 9);
        check_depthwise(3, 1, 2, 4, 5);
        check_far();
        check_pools(9, 7, 3, 2, 1);
        check_pools(8, 6, 2, 2, 0);
        check_activations();
        for (int64_t n = 1; n < 40; n += 3)
            check_softmax(n);
        check_pixelwise(3, 5);
    }
    return report("check_kernels");
}
