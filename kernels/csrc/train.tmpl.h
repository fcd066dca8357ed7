/* Gradients of the weights of a convolution, and sums over the pixels of a block.
 *
 * The weight gradient of one tap is the sum over pixels of the outer products of `ni` values of x
 * (broadcast) and `nb` blocks of the output's gradient. The sums stay in registers over CS_WGRAD_RUN
 * pixels, of several rows and images, before they are added to memory: two levels keep the rounding
 * error of long sums small. */

#define CS_WGRAD_RUN 2048

CS_INLINE void weight_tile(const int ni, const int nb, const cs_wgrad *p, const float *x, const float *g,
                           float *dw, int64_t dw_block, int add) {
    const int64_t step = p->x_px, block = p->g_block, columns = p->ow;
    int64_t images = CS_WGRAD_RUN / (p->oh * columns);
    images = images < 1 ? 1 : images;
    for (int64_t n0 = 0; n0 < p->n; n0 += images, add = 1) {
        const int64_t n1 = n0 + images < p->n ? n0 + images : p->n;
        vf acc[16][2];
CS_UNROLL(16)
        for (int i = 0; i < ni; i++)
CS_UNROLL(2)
            for (int b = 0; b < nb; b++)
                acc[i][b] = (vf){0};
        for (int64_t n = n0; n < n1; n++)
            for (int64_t oh = 0; oh < p->oh; oh++) {
                const float *xr = x + n * p->x_image + oh * p->x_oh;
                const float *gr = g + n * p->g_image + oh * p->g_row;
                for (int64_t ow = 0; ow < columns; ow++, xr += step, gr += CS_VL) {
                    vf gv[2];
CS_UNROLL(2)
                    for (int b = 0; b < nb; b++)
                        gv[b] = v_load(gr + b * block);
CS_UNROLL(16)
                    for (int i = 0; i < ni; i++) {
                        const vf xv = v_set(xr[i]);
CS_UNROLL(2)
                        for (int b = 0; b < nb; b++)
                            acc[i][b] += xv * gv[b];
                    }
                }
            }
CS_UNROLL(16)
        for (int i = 0; i < ni; i++)
CS_UNROLL(2)
            for (int b = 0; b < nb; b++) {
                float *d = dw + i * CS_VL + b * dw_block;
                if (add)
                    acc[i][b] += v_load(d);
                v_store(d, acc[i][b]);
            }
    }
}

#if CS_HALF
/* A block of which only the lower half of the lanes are filters, where half a vector takes half the
 * time; two pixels at a time, as few values of x would leave the sums waiting for each other. */
CS_INLINE void weight_half_tile(const int ni, const cs_wgrad *p, const float *x, const float *g, float *dw,
                                int add) {
    const int64_t step = p->x_px;
    for (int64_t n = 0; n < p->n; n++, add = 1) {
        vh acc[2][8];
CS_UNROLL(8)
        for (int i = 0; i < ni; i++)
            acc[0][i] = acc[1][i] = (vh){0};
        for (int64_t oh = 0; oh < p->oh; oh++) {
            const float *xr = x + n * p->x_image + oh * p->x_oh;
            const float *gr = g + n * p->g_image + oh * p->g_row;
            int64_t ow = 0;
            for (; ow + 2 <= p->ow; ow += 2, xr += 2 * step, gr += 2 * CS_VL)
CS_UNROLL(2)
                for (int k = 0; k < 2; k++)
CS_UNROLL(8)
                    for (int i = 0; i < ni; i++)
                        acc[k][i] += (xr[k * step + i] - (vh){0}) * *(const vh *)(gr + k * CS_VL);
            if (ow < p->ow)
CS_UNROLL(8)
                for (int i = 0; i < ni; i++)
                    acc[0][i] += (xr[i] - (vh){0}) * *(const vh *)gr;
        }
CS_UNROLL(8)
        for (int i = 0; i < ni; i++) {
            vh *d = (vh *)(dw + i * CS_VL);
            acc[0][i] += acc[1][i];
            if (add)
                acc[0][i] += *d;
            *d = acc[0][i];
        }
    }
}
#endif

/* values of x a tile; with two blocks as many as leave registers for g and a broadcast */
#define CS_WEIGHT1 (CS_PX4 ? 16 : 8)
#define CS_WEIGHT2 (CS_PX4 ? 8 : 4)

#define CS_WEIGHT_CASE(ni, nb)                                                                     \
    case ni:                                                                                       \
        weight_tile(ni, nb, p, x + i, g, dw + i * CS_VL, dw_block, add);                           \
        break;

#define CS_WEIGHT_HALF(ni)                                                                         \
    case ni:                                                                                       \
        weight_half_tile(ni, p, x + i, g, dw + i * CS_VL, add);                                    \
        break;

static void weight_gradient(const cs_wgrad *p, int inner, int blocks, const float *x, const float *g,
                            float *dw, int64_t dw_block, int add) {
#if CS_HALF
    if (p->half) {
        const int parts = (inner + 7) / 8;
        for (int part = 0; part < parts; part++) {
            const int i = inner * part / parts;
            switch (inner * (part + 1) / parts - i) {
                CS_WEIGHT_HALF(1) CS_WEIGHT_HALF(2) CS_WEIGHT_HALF(3) CS_WEIGHT_HALF(4)
                CS_WEIGHT_HALF(5) CS_WEIGHT_HALF(6) CS_WEIGHT_HALF(7) CS_WEIGHT_HALF(8)
            }
        }
        return;
    }
#endif
    const int widest = blocks == 2 ? CS_WEIGHT2 : CS_WEIGHT1;
    const int parts = (inner + widest - 1) / widest;
    assert(blocks == 1 || blocks == 2);
    for (int part = 0; part < parts; part++) {
        const int i = inner * part / parts, ni = inner * (part + 1) / parts - i;
        if (blocks == 1)
            switch (ni) {
                CS_WEIGHT_CASE(1, 1) CS_WEIGHT_CASE(2, 1) CS_WEIGHT_CASE(3, 1) CS_WEIGHT_CASE(4, 1)
                CS_WEIGHT_CASE(5, 1) CS_WEIGHT_CASE(6, 1) CS_WEIGHT_CASE(7, 1) CS_WEIGHT_CASE(8, 1)
#if CS_PX4
                CS_WEIGHT_CASE(9, 1) CS_WEIGHT_CASE(10, 1) CS_WEIGHT_CASE(11, 1) CS_WEIGHT_CASE(12, 1)
                CS_WEIGHT_CASE(13, 1) CS_WEIGHT_CASE(14, 1) CS_WEIGHT_CASE(15, 1) CS_WEIGHT_CASE(16, 1)
#endif
            }
        else
            switch (ni) {
                CS_WEIGHT_CASE(1, 2) CS_WEIGHT_CASE(2, 2) CS_WEIGHT_CASE(3, 2) CS_WEIGHT_CASE(4, 2)
#if CS_PX4
                CS_WEIGHT_CASE(5, 2) CS_WEIGHT_CASE(6, 2) CS_WEIGHT_CASE(7, 2) CS_WEIGHT_CASE(8, 2)
#endif
            }
    }
}

/* the taps of one filter row, `nt` from column kw on */
CS_INLINE void depthwise_taps(const int nt, const cs_depthwise *p, const cs_wgrad *a, const float *x,
                              const float *g, float *dw, int add) {
    vf acc[4];
CS_UNROLL(4)
    for (int t = 0; t < nt; t++)
        acc[t] = (vf){0};
    for (int64_t oh = 0; oh < a->oh; oh++) {
        const float *xr = x + oh * p->x_oh, *gr = g + oh * a->g_row;
        for (int64_t ow = 0; ow < a->ow; ow++, xr += p->x_px, gr += CS_VL) {
            const vf gv = v_load(gr);
CS_UNROLL(4)
            for (int t = 0; t < nt; t++)
                acc[t] += v_load(xr + t * p->x_kw) * gv;
        }
    }
CS_UNROLL(4)
    for (int t = 0; t < nt; t++) {
        float *d = dw + t * CS_VL;
        if (add)
            acc[t] += v_load(d);
        v_store(d, acc[t]);
    }
}

static void depthwise_gradient(const cs_depthwise *p, const cs_wgrad *a, const float *x, const float *g,
                               float *dw, int add) {
    for (int kh = 0; kh < p->kh; kh++) {
        const float *xr = x + kh * p->x_kh;
        float *d = dw + (int64_t)kh * p->kw * CS_VL;
        int kw = 0;
        for (; kw + 4 <= p->kw; kw += 4)
            depthwise_taps(4, p, a, xr + kw * p->x_kw, g, d + kw * CS_VL, add);
        for (; kw + 3 <= p->kw; kw += 3)
            depthwise_taps(3, p, a, xr + kw * p->x_kw, g, d + kw * CS_VL, add);
        for (; kw < p->kw; kw++)
            depthwise_taps(1, p, a, xr + kw * p->x_kw, g, d + kw * CS_VL, add);
    }
}

static void depthwise_scatter(const cs_depthwise *p, const float *g, const float *w, float *x) {
    for (int oh = 0; oh < p->oh; oh++)
        for (int kh = 0; kh < p->kh; kh++)
            for (int kw = 0; kw < p->kw; kw++) {
                const vf wv = v_load(w + (kh * p->kw + kw) * CS_VL);
                const float *gr = g + oh * p->y_row;
                float *xr = x + oh * p->x_oh + kh * p->x_kh + kw * p->x_kw;
                for (int ow = 0; ow < p->ow; ow++, xr += p->x_px, gr += CS_VL)
                    v_store(xr, v_load(xr) + v_load(gr) * wv);
            }
}

static void copy(int h, int w, int add, const float *x, int64_t x_row, float *y, int64_t y_row) {
    for (int i = 0; i < h; i++, x += x_row, y += y_row)
        if (add)
            for (int j = 0; j < w; j++)
                v_store(y + j * CS_VL, v_load(y + j * CS_VL) + v_load(x + j * CS_VL));
        else
            memcpy(y, x, sizeof(float) * w * CS_VL);
}

/* Sums of up to 64 pixels in float32, these in float64. */
static void channel_sums(int h, int w, const float *x, int64_t x_row, double *sums, double *squares) {
    for (int i = 0; i < h; i++, x += x_row)
        for (int first = 0; first < w; first += 64) {
            const int end = w - first < 64 ? w : first + 64;
            vf s[2] = {{0}, {0}}, q[2] = {{0}, {0}};
            int j = first;
            for (; j + 2 <= end; j += 2)
CS_UNROLL(2)
                for (int k = 0; k < 2; k++) {
                    const vf v = v_load(x + (j + k) * CS_VL);
                    s[k] += v;
                    q[k] += v * v;
                }
            if (j < end) {
                const vf v = v_load(x + j * CS_VL);
                s[0] += v;
                q[0] += v * v;
            }
            float lanes[2 * CS_VL];
            v_store(lanes, s[0] + s[1]);
            v_store(lanes + CS_VL, q[0] + q[1]);
            for (int l = 0; l < CS_VL; l++)
                sums[l] += lanes[l];
            if (squares)
                for (int l = 0; l < CS_VL; l++)
                    squares[l] += lanes[CS_VL + l];
        }
}
