// The recurrence of RWKV-7 forward and backward for one head of 64, one row of the batch at a time.
//
// It is the optional fast path of `model.wkv_chunked`: same numbers, a state that stays in the
// first-level cache. It knows nothing of PyTorch; arrays are contiguous float32, (B, T, H, 64). The
// layout of the state matters: P[key][value], so that every inner loop runs over values.

#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int N = 64;       // head size
constexpr int V = N / 8;    // vectors of a row
constexpr int CHUNK = 16;   // a state is kept every so many tokens; backward makes the others again
typedef float v8 __attribute__((vector_size(32), aligned(4)));

inline float sum(v8 x) {
    return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7]));
}

// One token: P becomes the state after it, y the output, sa what the removal key read.
inline void step(float* P, const float* r, const float* w, const float* k, const float* v,
                 const float* a, const float* b, float* y, float* sa_out) {
    v8 sa[V] = {}, out[V] = {}, vv[V];
    for (int j = 0; j < N; j++) {
        const v8* p = (const v8*)(P + j * N);
        for (int i = 0; i < V; i++) sa[i] += a[j] * p[i];
    }
    for (int i = 0; i < V; i++) vv[i] = ((const v8*)v)[i];
    for (int j = 0; j < N; j++) {
        v8* p = (v8*)(P + j * N);
        const float wj = w[j], bj = b[j], kj = k[j], rj = r[j];
        for (int i = 0; i < V; i++) {
            v8 x = wj * p[i] + bj * sa[i] + kj * vv[i];
            p[i] = x;
            out[i] += rj * x;
        }
    }
    for (int i = 0; i < V; i++) {
        if (y) ((v8*)y)[i] = out[i];
        ((v8*)sa_out)[i] = sa[i];
    }
}

template <class F>
void spread(int64_t rows, int threads, F work) {
    std::vector<std::thread> pool;
    for (int n = 0; n < threads; n++) {
        pool.emplace_back([=] {
            for (int64_t row = n; row < rows; row += threads) work(row);
        });
    }
    for (auto& t : pool) t.join();
}

}  // namespace

extern "C" {

// P0, P1: (B * H, 64, 64); kept: (B * H, T / 16, 64, 64), the states that open each chunk.
void wkv_forward(int64_t B, int64_t T, int64_t H, int threads, const float* r, const float* w,
                 const float* k, const float* v, const float* a, const float* b, const float* P0,
                 float* y, float* P1, float* kept) {
    const int64_t chunks = T / CHUNK;
    spread(B * H, threads, [=](int64_t row) {
        alignas(32) float P[N * N], sa[N];
        std::memcpy(P, P0 + row * N * N, sizeof P);
        const int64_t base = (row / H) * T * H * N + (row % H) * N;
        for (int64_t t = 0; t < T; t++) {
            const int64_t o = base + t * H * N;
            if (t % CHUNK == 0) std::memcpy(kept + (row * chunks + t / CHUNK) * N * N, P, sizeof P);
            step(P, r + o, w + o, k + o, v + o, a + o, b + o, y + o, sa);
        }
        std::memcpy(P1 + row * N * N, P, sizeof P);
    });
}

void wkv_backward(int64_t B, int64_t T, int64_t H, int threads, const float* r, const float* w,
                  const float* k, const float* v, const float* a, const float* b, const float* kept,
                  const float* dy, float* dr, float* dw, float* dk, float* dv, float* da, float* db) {
    const int64_t chunks = T / CHUNK;
    spread(B * H, threads, [=](int64_t row) {
        std::vector<float> states((CHUNK + 1) * N * N), sas(CHUNK * N), adjoint(N * N, 0.0f);
        const int64_t base = (row / H) * T * H * N + (row % H) * N;
        for (int64_t c = chunks - 1; c >= 0; c--) {
            std::memcpy(states.data(), kept + (row * chunks + c) * N * N, N * N * sizeof(float));
            for (int s = 0; s < CHUNK; s++) {
                const int64_t o = base + (c * CHUNK + s) * H * N;
                float* next = states.data() + (s + 1) * N * N;
                std::memcpy(next, states.data() + s * N * N, N * N * sizeof(float));
                step(next, r + o, w + o, k + o, v + o, a + o, b + o, nullptr, sas.data() + s * N);
            }
            for (int s = CHUNK - 1; s >= 0; s--) {
                const int64_t o = base + (c * CHUNK + s) * H * N;
                const float *before = states.data() + s * N * N, *after = before + N * N;
                v8 dsa[V] = {}, dvv[V] = {}, vv[V], dyy[V], sa[V];
                for (int i = 0; i < V; i++) {
                    vv[i] = ((const v8*)(v + o))[i];
                    dyy[i] = ((const v8*)(dy + o))[i];
                    sa[i] = ((const v8*)(sas.data() + s * N))[i];
                }
                for (int j = 0; j < N; j++) {
                    v8* g = (v8*)(adjoint.data() + j * N);
                    const v8 *pb = (const v8*)(before + j * N), *pa = (const v8*)(after + j * N);
                    const float rj = r[o + j], bj = b[o + j], kj = k[o + j];
                    v8 sr = {}, sk = {}, sb = {}, sw = {};
                    for (int i = 0; i < V; i++) {
                        const v8 x = g[i] + rj * dyy[i];
                        g[i] = x;
                        sr += pa[i] * dyy[i];
                        sk += x * vv[i];
                        sb += x * sa[i];
                        sw += x * pb[i];
                        dsa[i] += bj * x;
                        dvv[i] += kj * x;
                    }
                    dr[o + j] = sum(sr);
                    dk[o + j] = sum(sk);
                    db[o + j] = sum(sb);
                    dw[o + j] = sum(sw);
                }
                for (int j = 0; j < N; j++) {
                    v8* g = (v8*)(adjoint.data() + j * N);
                    const v8* pb = (const v8*)(before + j * N);
                    const float wj = w[o + j], aj = a[o + j];
                    v8 sa_sum = {};
                    for (int i = 0; i < V; i++) {
                        sa_sum += pb[i] * dsa[i];
                        g[i] = wj * g[i] + aj * dsa[i];
                    }
                    da[o + j] = sum(sa_sum);
                }
                for (int i = 0; i < V; i++) ((v8*)(dv + o))[i] = dvv[i];
            }
        }
    });
}

}  // extern "C"
