/* Weight gradient of one filter tap: for each pixel, the outer product of `inner` input values
 * (broadcast) and `nb` blocks of the output's gradient. The sum of one image stays in registers and
 * is then added to dw: two levels keep the rounding error of long sums small. */

CS_INLINE void wgrad_tile(const int ni, const int nb, const cs_wgrad *p, int ldw, const float *x,
                          const float *g, float *dw) {
    for (int64_t n = 0; n < p->n; n++) {
        vf acc[8][2];
CS_UNROLL(8)
        for (int i = 0; i < ni; i++)
CS_UNROLL(2)
            for (int b = 0; b < nb; b++)
                acc[i][b] = (vf){0};
        for (int64_t oh = 0; oh < p->oh; oh++) {
            const float *xr = x + n * p->x_image + oh * p->x_oh;
            const float *gr = g + n * p->g_image + oh * p->g_row;
            for (int64_t ow = 0; ow < p->ow; ow++, xr += p->x_px, gr += CS_VL) {
                vf gv[2];
CS_UNROLL(2)
                for (int b = 0; b < nb; b++)
                    gv[b] = v_load(gr + b * p->g_block);
CS_UNROLL(8)
                for (int i = 0; i < ni; i++) {
                    const vf xv = v_set(xr[i]);
CS_UNROLL(2)
                    for (int b = 0; b < nb; b++)
                        acc[i][b] += xv * gv[b];
                }
            }
        }
CS_UNROLL(8)
        for (int i = 0; i < ni; i++)
CS_UNROLL(2)
            for (int b = 0; b < nb; b++) {
                float *d = dw + (int64_t)i * ldw + b * CS_VL;
                v_store(d, v_load(d) + acc[i][b]);
            }
    }
}

/* x values a tile: with two blocks, half as many on machines of 16 registers */
#define CS_WGRAD1 8
#define CS_WGRAD2 (CS_PX4 ? 8 : 4)

#define CS_WGRAD_CASE(ni, nb)                                                                      \
    case ni:                                                                                       \
        wgrad_tile(ni, nb, p, ldw, x + i, g, dw + (int64_t)i * ldw);                 \
        break;

static void wgrad(const cs_wgrad *p, int inner, int blocks, int ldw, const float *x, const float *g,
                  float *dw) {
    const int widest = blocks == 2 ? CS_WGRAD2 : CS_WGRAD1;
    assert(blocks == 1 || blocks == 2);
    for (int i = 0; i < inner; i += widest) {
        const int ni = inner - i < widest ? inner - i : widest;
        if (blocks == 1)
            switch (ni) {
                CS_WGRAD_CASE(1, 1) CS_WGRAD_CASE(2, 1) CS_WGRAD_CASE(3, 1) CS_WGRAD_CASE(4, 1)
                CS_WGRAD_CASE(5, 1) CS_WGRAD_CASE(6, 1) CS_WGRAD_CASE(7, 1) CS_WGRAD_CASE(8, 1)
            }
        else
            switch (ni) {
                CS_WGRAD_CASE(1, 2) CS_WGRAD_CASE(2, 2) CS_WGRAD_CASE(3, 2) CS_WGRAD_CASE(4, 2)
#if CS_PX4
                CS_WGRAD_CASE(5, 2) CS_WGRAD_CASE(6, 2) CS_WGRAD_CASE(7, 2) CS_WGRAD_CASE(8, 2)
#endif
            }
    }
}
