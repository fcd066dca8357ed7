/* Normalisation over the channels of each pixel, and softmax over a row. The surplus lanes of the
 * last block may hold anything, and count as zeros. */

/* np pixels at a time: each is a chain of sums of its own */
CS_INLINE void layer_norm_pixels(const int np, const cs_norm *p, const float *x, const float *weight,
                                 const float *bias, float *y) {
    const int planes = (p->channels + CS_VL - 1) / CS_VL;
    const vi real = v_first(p->channels - (planes - 1) * CS_VL);
    const float channels = (float)p->channels;
    vf sum[4], mean[4], scale[4];
    for (int i = 0; i < np; i++)
        sum[i] = (vf){0};
    for (int c = 0; c < planes; c++)
        for (int i = 0; i < np; i++) {
            const vf v = v_load(x + c * p->x_plane + i * CS_VL);
            sum[i] += c < planes - 1 ? v : v_select(real, v, (vf){0});
        }
    for (int i = 0; i < np; i++) {
        mean[i] = v_set(v_total(sum[i]) / channels);
        sum[i] = (vf){0};
    }
    for (int c = 0; c < planes; c++)
        for (int i = 0; i < np; i++) {
            const vf d = v_load(x + c * p->x_plane + i * CS_VL) - mean[i];
            const vf square = d * d;
            sum[i] += c < planes - 1 ? square : v_select(real, square, (vf){0});
        }
    for (int i = 0; i < np; i++)
        scale[i] = v_set(1.0f / sqrtf(v_total(sum[i]) / channels + p->eps));
    for (int c = 0; c < planes; c++) {
        const vf w = v_load(weight + (int64_t)c * CS_VL), b = v_load(bias + (int64_t)c * CS_VL);
        for (int i = 0; i < np; i++)
            v_store(y + c * p->y_plane + i * CS_VL,
                    (v_load(x + c * p->x_plane + i * CS_VL) - mean[i]) * scale[i] * w + b);
    }
}

static void layer_norm(const cs_norm *p, int h0, int h1, const float *x, const float *weight,
                       const float *bias, float *y) {
    for (int h = h0; h < h1; h++) {
        const float *xr = x + h * p->x_row;
        float *yr = y + h * p->y_row;
        int w = 0;
        for (; w + 4 <= p->w; w += 4)
            layer_norm_pixels(4, p, xr + (int64_t)w * CS_VL, weight, bias, yr + (int64_t)w * CS_VL);
        for (; w < p->w; w++)
            layer_norm_pixels(1, p, xr + (int64_t)w * CS_VL, weight, bias, yr + (int64_t)w * CS_VL);
    }
}

/* the squares of one block of a pixel; x at block 0 */
CS_INLINE vf lrn_squares(const cs_norm *p, int block, const float *x) {
    const int left = p->channels - block * CS_VL;
    if (block < 0 || left <= 0)
        return (vf){0};
    const vf v = v_load(x + block * p->x_plane), square = v * v;
    return left >= CS_VL ? square : v_select(v_first(left), square, (vf){0});
}

/* the sum of squares around each channel of a block, for a window wider than the blocks beside it */
static vf lrn_wide(const cs_norm *p, int block, const float *x) {
    vf sum = {0};
    for (int l = 0; l < CS_VL; l++) {
        const int channel = block * CS_VL + l;
        float total = 0;
        for (int c = channel < p->before ? 0 : channel - p->before;
             c < p->channels && c - channel <= p->after; c++) {
            const float v = x[c / CS_VL * p->x_plane + c % CS_VL];
            total += v * v;
        }
        sum[l] = total;
    }
    return sum;
}

/* np pixels at a time: the processor finishes the stores of all before it reads across them */
CS_INLINE void lrn_pixels(const int np, const cs_norm *p, int block, const float *x, float *y) {
    float squares[8][3 * CS_VL];
    const int wide = p->after > CS_VL;
    if (!wide)
        for (int i = 0; i < np; i++)
            for (int k = 0; k < 3; k++)
                v_store(squares[i] + k * CS_VL, lrn_squares(p, block + k - 1, x + i * CS_VL));
    for (int i = 0; i < np; i++) {
        vf sum = {0};
        if (wide)
            sum = lrn_wide(p, block, x + i * CS_VL);
        else
            for (int k = -p->before; k <= p->after; k++)
                sum += v_load(squares[i] + CS_VL + k);
        const vf base = v_set(p->bias) + v_set(p->alpha) * sum;
        v_store(y + block * p->y_plane + i * CS_VL,
                v_load(x + block * p->x_plane + i * CS_VL) * v_exp(v_set(-p->beta) * v_log(base)));
    }
}

static void lrn(const cs_norm *p, int block, int h0, int h1, const float *x, float *y) {
    for (int h = h0; h < h1; h++) {
        const float *xr = x + h * p->x_row;
        float *yr = y + h * p->y_row;
        int w = 0;
        for (; w + 8 <= p->w; w += 8)
            lrn_pixels(8, p, block, xr + (int64_t)w * CS_VL, yr + (int64_t)w * CS_VL);
        for (; w < p->w; w++)
            lrn_pixels(1, p, block, xr + (int64_t)w * CS_VL, yr + (int64_t)w * CS_VL);
    }
}

/* the largest of all but NaN: a NaN spreads over the row through the sum */
CS_INLINE float row_top(int64_t n, const float *x) {
    vf top = v_set(-INFINITY);
    int64_t i = 0;
    for (; i + CS_VL <= n; i += CS_VL) {
        const vf v = v_load(x + i);
        top = v_select(v > top, v, top);
    }
    const vf v = v_load_part(x + i, n - i, v_set(-INFINITY));
    return v_largest(v_select(v > top, v, top));
}

static void softmax(int64_t n, const float *x, float *y) {
    const vf top = v_set(row_top(n, x));
    vf sum = {0};
    int64_t i = 0;
    for (; i + CS_VL <= n; i += CS_VL) {
        const vf e = v_exp(v_load(x + i) - top);
        v_store(y + i, e);
        sum += e;
    }
    float last[CS_VL];
    const vf e = v_select(v_first((int)(n - i)), v_exp(v_load_part(x + i, n - i, top) - top), (vf){0});
    v_store(last, e);
    memcpy(y + i, last, sizeof(float) * (n - i));
    const float total = v_total(sum + e);
    for (int64_t j = 0; j < n; j++)
        y[j] /= total;
}

static void log_softmax(int64_t n, const float *x, float *y) {
    const float top = row_top(n, x);
    vf sum = {0};
    int64_t i = 0;
    for (; i + CS_VL <= n; i += CS_VL)
        sum += v_exp(v_load(x + i) - v_set(top));
    sum += v_select(v_first((int)(n - i)), v_exp(v_load_part(x + i, n - i, v_set(top)) - v_set(top)), (vf){0});
    const float log_total = logf(v_total(sum));
    for (int64_t j = 0; j < n; j++)
        y[j] = (x[j] - top) - log_total;
}
