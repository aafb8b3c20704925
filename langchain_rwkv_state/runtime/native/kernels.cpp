// Runs one pass of an RWKV-7 model over ragged rows on a CPU: fp32 arithmetic, weights as kept.
//
// The fast path of `plain.py`, which says the same in readable PyTorch and is the oracle of its
// tests. It is built on the user's machine, for its instruction set. It knows nothing of PyTorch:
// arrays are contiguous, and every buffer is the caller's. It links no OpenMP
// library: PyTorch has one in the process already, and two pools fight for the same cores.
//
// T rows (tokens) of G segments, each one conversation's ids: segment s has the rows start[s] to
// start[s + 1] and the state in slot[s]. D width, H heads, N head size, S slots, V vocabulary.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace {

constexpr float DECAY = -0.606531f;       // -exp(-0.5), as the rwkv package has it
constexpr float GROUP_NORM_EPS = 64e-5f;
constexpr float NORM_EPS = 1e-5f;
constexpr float UNIT_EPS = 1e-12f;        // of torch.nn.functional.normalize

// -- threads -----------------------------------------------------------------------------------
//
// Each loop's units are taken one by one by whoever is free, and the next loop begins as soon as all
// are done. OpenMP's own barriers wait until every thread has *arrived*: on a busy machine one that
// the system has put aside holds up the others a hundred times a pass.

struct alignas(64) Phase {
    std::atomic<int64_t> taken{0}, done{0};
};

// One thread's way through the loops of a pass; every thread takes the same way.
class Worker {
public:
    explicit Worker(Phase* first) : next_(first) {}

    // Does some of the units of a loop; what reads its results calls `wait` first.
    template <class Work>
    void parallel_for(int64_t units, Work work) {
        Phase& phase = *next_++;
        for (int64_t unit; (unit = phase.taken.fetch_add(1, std::memory_order_relaxed)) < units;) {
            work(unit);
            phase.done.fetch_add(1, std::memory_order_release);
        }
        open_[count_++] = {&phase, units};
    }

    // Waits until all loops since the last wait are done.
    void wait() {
        for (int i = 0; i < count_; i++) {
            int spins = 0;
            while (open_[i].phase->done.load(std::memory_order_acquire) < open_[i].units) {
                if (++spins > 4096) std::this_thread::yield();
            }
        }
        count_ = 0;
    }

private:
    struct Open {
        Phase* phase;
        int64_t units;
    };
    Phase* next_;
    Open open_[12];                       // at most: a layer's first gemms, and what goes before
    int count_ = 0;
};

constexpr int64_t PHASES_OF_LAYER = 27, PHASES_OF_END = 3;

// -- matrix products ---------------------------------------------------------------------------
//
// A matrix [N, K] is kept in panels of PANEL outputs, [N / PANEL, K, PANEL], so that one register
// tile of ROWS x PANEL sums over a stream of weights without a single horizontal sum.

#if defined(__AVX512F__)
constexpr int WIDTH = 16, ACROSS = 4, ROWS = 6;
#elif defined(__AVX__)
constexpr int WIDTH = 8, ACROSS = 2, ROWS = 6;
#else
constexpr int WIDTH = 4, ACROSS = 4, ROWS = 6;
#endif
constexpr int PANEL = WIDTH * ACROSS;
constexpr int64_t LINE = 64;              // bytes of a cache line
constexpr int64_t DEPTH = 1024;           // of a panel's block, which stays in the second-level cache
constexpr int64_t BLOCK = 20 * ROWS;      // rows that share a panel's block

typedef float vec __attribute__((vector_size(WIDTH * 4), aligned(4)));
typedef int8_t bytes __attribute__((vector_size(WIDTH), aligned(1)));
typedef uint16_t halves __attribute__((vector_size(WIDTH * 2), aligned(2)));
typedef uint32_t words __attribute__((vector_size(WIDTH * 4), aligned(4)));

// Products of bytes: four at a time are summed into 32 bits, exactly and in any order.
#if defined(__AVX512VNNI__)
#define DOTS 1
typedef __m512i ints;
INLINE ints dots(ints sum, int32_t x, const int8_t* w) {
    return _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(x), _mm512_loadu_si512(w));
}
INLINE void store(int32_t* to, ints sum) { _mm512_storeu_si512(to, sum); }
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
#define DOTS 1
typedef __m256i ints;
INLINE ints dots(ints sum, int32_t x, const int8_t* w) {
    return _mm256_dpbusd_avx_epi32(sum, _mm256_set1_epi32(x), _mm256_loadu_si256((const __m256i*)w));
}
INLINE void store(int32_t* to, ints sum) { _mm256_storeu_si256((__m256i*)to, sum); }
#endif

enum Kind : int64_t { FP32 = 0, BF16 = 1, FP16 = 2, INT8 = 3, DOT8 = 4 };
enum After : int64_t { NOTHING = 0, TANH = 1, SIGMOID = 2, SQUARED_RELU = 3 };

struct Matrix {
    const void* data;                     // for DOT8 [panels, k / 4, PANEL, 4]
    const float* scale;                   // of each output, for INT8 and DOT8
    const int32_t* sums;                  // of each output's weights, for DOT8
    const float* bias;
    int64_t n, k, kind;
};

// Rows to be multiplied; for DOT8 rounded to bytes, each row by its own scale: x = (bytes - 128) * scale.
struct Input {
    const float* x;
    uint8_t* bytes;
    float* scale;
};

template <int KIND> struct Weight { typedef float type; };
template <> struct Weight<BF16> { typedef uint16_t type; };
template <> struct Weight<FP16> { typedef uint16_t type; };
template <> struct Weight<INT8> { typedef int8_t type; };

template <int KIND>
INLINE vec load(const typename Weight<KIND>::type* from) {
    if constexpr (KIND == FP32) {
        return *(const vec*)from;
    } else if constexpr (KIND == BF16) {
        return (vec)(__builtin_convertvector(*(const halves*)from, words) << 16);
    } else if constexpr (KIND == INT8) {
#if defined(__AVX512F__)
        return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
#elif defined(__AVX2__)
        return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
#else
        return __builtin_convertvector(*(const bytes*)from, vec);
#endif
    } else {
#if defined(__AVX512F__)
        return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__F16C__) && defined(__AVX__)
        return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
        return vec{};                     // never packed so: see `keeps_fp16`
#endif
    }
}

// sums[M][PANEL] (+)= x[M][depth] * block[depth][PANEL]; fetches what comes later, `ahead` if any.
template <int KIND, int M>
void tile(const float* x, int64_t stride, const void* block, int64_t depth, float* sums, bool more,
          const char* ahead) {
    const auto* w = (const typename Weight<KIND>::type*)block;
    vec sum[M][ACROSS];
    for (int m = 0; m < M; m++)
        for (int n = 0; n < ACROSS; n++)
            sum[m][n] = more ? *(const vec*)(sums + m * PANEL + n * WIDTH) : vec{};
    for (int64_t k = 0; k < depth; k++) {
        vec b[ACROSS];
        if (M > 2 && ahead != nullptr) __builtin_prefetch(ahead + k * LINE, 0, 2);
        for (int n = 0; n < ACROSS; n++) b[n] = load<KIND>(w + k * PANEL + n * WIDTH);
        for (int m = 0; m < M; m++) {
            const float a = x[m * stride + k];
            for (int n = 0; n < ACROSS; n++) sum[m][n] += a * b[n];
        }
    }
    for (int m = 0; m < M; m++)
        for (int n = 0; n < ACROSS; n++) *(vec*)(sums + m * PANEL + n * WIDTH) = sum[m][n];
}

typedef void (*Tile)(const float*, int64_t, const void*, int64_t, float*, bool, const char*);
template <int KIND> constexpr Tile TILES[ROWS + 1] = {
    nullptr,       tile<KIND, 1>, tile<KIND, 2>, tile<KIND, 3>,
    tile<KIND, 4>, tile<KIND, 5>, tile<KIND, 6>,
};

// exp(x) by Cephes' expf, clamped to what fp32 holds: relative error 2e-7; loops over it vectorise.
INLINE float exponential(float x) {
    x = x > 87.0f ? 87.0f : (x < -87.0f ? -87.0f : x);
    const float n = std::floor(x * 1.44269504088896341f + 0.5f);
    const float f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return (p * f * f + f + 1.0f) * power;
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

void finish(const float* sums, int64_t rows, const Matrix& m, int64_t panel, After after, float* y) {
    const int64_t from = panel * PANEL, width = std::min<int64_t>(PANEL, m.n - from);
    for (int64_t r = 0; r < rows; r++) {
        const float* sum = sums + r * PANEL;
        float* to = y + r * m.n + from;
        float value[PANEL];
        for (int j = 0; j < width; j++) {
            const float scaled = m.scale != nullptr ? sum[j] * m.scale[from + j] : sum[j];
            value[j] = m.bias != nullptr ? scaled + m.bias[from + j] : scaled;
        }
        if (after == SIGMOID) {
            for (int j = 0; j < width; j++) value[j] = sigmoid(value[j]);
        } else if (after == TANH) {
            for (int j = 0; j < width; j++) value[j] = 2.0f * sigmoid(2.0f * value[j]) - 1.0f;
        } else if (after == SQUARED_RELU) {
            for (int j = 0; j < width; j++) value[j] = value[j] > 0 ? value[j] * value[j] : 0.0f;
        }
        std::memcpy(to, value, width * sizeof(float));
    }
}

#if defined(DOTS)
template <int M>
void dot_tile(const uint8_t* x, int64_t depth, const int8_t* w, int32_t* sums) {
    ints sum[M][ACROSS];
    for (int m = 0; m < M; m++)
        for (int n = 0; n < ACROSS; n++) sum[m][n] = ints{};
    for (int64_t k = 0; k < depth; k += 4) {
        for (int m = 0; m < M; m++) {
            int32_t four;
            std::memcpy(&four, x + m * depth + k, sizeof four);
            for (int n = 0; n < ACROSS; n++) sum[m][n] = dots(sum[m][n], four, w + k * PANEL + n * WIDTH * 4);
        }
    }
    for (int m = 0; m < M; m++)
        for (int n = 0; n < ACROSS; n++) store(sums + m * PANEL + n * WIDTH, sum[m][n]);
}

typedef void (*DotTile)(const uint8_t*, int64_t, const int8_t*, int32_t*);
constexpr DotTile DOT_TILES[ROWS + 1] = {
    nullptr,     dot_tile<1>, dot_tile<2>, dot_tile<3>, dot_tile<4>, dot_tile<5>, dot_tile<6>,
};

void dot_rows(const Matrix& m, int64_t panel, int64_t rows, const uint8_t* x, const float* scale,
              After after, float* y) {
    static thread_local int32_t whole[BLOCK * PANEL];
    static thread_local float sums[BLOCK * PANEL];
    const int8_t* w = (const int8_t*)m.data + panel * m.k * PANEL;
    const int64_t tiles = (rows + ROWS - 1) / ROWS;
    for (int64_t t = 0, row = 0; t < tiles; t++) {
        const int64_t height = (rows - row + tiles - t - 1) / (tiles - t);
        DOT_TILES[height](x + row * m.k, m.k, w, whole + row * PANEL);
        row += height;
    }
    for (int64_t r = 0; r < rows; r++)
        for (int j = 0; j < PANEL; j++)
            sums[r * PANEL + j] = (whole[r * PANEL + j] - 128 * m.sums[panel * PANEL + j]) * scale[r];
    finish(sums, rows, m, panel, after, y);
}
#else
void dot_rows(const Matrix&, int64_t, int64_t, const uint8_t*, const float*, After, float*) {}
#endif

template <int KIND>
void panel_rows(const Matrix& m, int64_t panel, int64_t rows, const float* x, After after, float* y) {
    static thread_local float sums[BLOCK * PANEL];
    const auto* w = (const typename Weight<KIND>::type*)m.data + panel * m.k * PANEL;
    const int64_t tiles = (rows + ROWS - 1) / ROWS;
    for (int64_t k = 0; k < m.k; k += DEPTH) {
        const int64_t depth = std::min(DEPTH, m.k - k);
        for (int64_t t = 0, row = 0; t < tiles; t++) {
            const int64_t height = (rows - row + tiles - t - 1) / (tiles - t);
            // While one panel is multiplied, the next comes from memory: a quarter with each tile.
            const char* next = (const char*)(w + (m.k + k) * PANEL) + (t - 1) * depth * LINE;
            const bool wanted = t > 0 && t * depth * LINE <= depth * PANEL * int64_t(sizeof(*w));
            TILES<KIND>[height](x + row * m.k + k, m.k, w + k * PANEL, depth, sums + row * PANEL, k > 0,
                                wanted ? next : nullptr);
            row += height;
        }
    }
    finish(sums, rows, m, panel, after, y);
}

INLINE Input plain(const float* x) { return {x, nullptr, nullptr}; }

// Rounds rows to bytes where a matrix wants that.
void quantise_rows(Worker& me, const Matrix& m, int64_t T, const Input& input) {
    if (m.kind != DOT8) return;
    me.parallel_for(T, [&](int64_t t) {
        const float* x = input.x + t * m.k;
        uint8_t* to = input.bytes + t * m.k;
        float most = 0.0f;
        for (int64_t j = 0; j < m.k; j++) most = std::max(most, std::fabs(x[j]));
        const float by = most > 0.0f ? 127.0f / most : 0.0f;
        for (int64_t j = 0; j < m.k; j++)
            to[j] = static_cast<uint8_t>(static_cast<int32_t>(std::nearbyint(x[j] * by)) + 128);
        input.scale[t] = most / 127.0f;
    });
}

// y[T][n] = after(x[T][k] m' + bias)
void gemm(Worker& me, const Matrix& m, int64_t T, const Input& input, float* y,
             After after = NOTHING) {
    const int64_t panels = (m.n + PANEL - 1) / PANEL, blocks = (T + BLOCK - 1) / BLOCK;
    me.parallel_for(panels * blocks, [&](int64_t unit) {
        const int64_t panel = unit / blocks, row = unit % blocks * BLOCK;
        const int64_t rows = std::min(BLOCK, T - row);
        const float* from = input.x + row * m.k;
        float* to = y + row * m.n;
        switch (m.kind) {
            case FP32: panel_rows<FP32>(m, panel, rows, from, after, to); break;
            case BF16: panel_rows<BF16>(m, panel, rows, from, after, to); break;
            case FP16: panel_rows<FP16>(m, panel, rows, from, after, to); break;
            case INT8: panel_rows<INT8>(m, panel, rows, from, after, to); break;
            default: dot_rows(m, panel, rows, input.bytes + row * m.k, input.scale + row, after, to);
        }
    });
}

// -- between the gemms -------------------------------------------------------------------------

struct Rows {
    int64_t T, G;
    const int64_t *start, *slot;
};

struct Norm {
    const float *weight, *bias;
};

INLINE void layer_norm(const float* x, int64_t D, Norm norm, float* out) {
    float mean = 0.0f, variance = 0.0f;
    for (int64_t d = 0; d < D; d++) mean += x[d];
    mean /= D;
    for (int64_t d = 0; d < D; d++) variance += (x[d] - mean) * (x[d] - mean);
    const float inverse = 1.0f / std::sqrt(variance / D + NORM_EPS);
    for (int64_t d = 0; d < D; d++) out[d] = (x[d] - mean) * inverse * norm.weight[d] + norm.bias[d];
}

// x += delta; n = layer_norm(x); out[m] = n + (shifted - n) * mix[m], where `shifted` is n one token
// back: for a segment's first row `before`, which becomes n of its last.
void norm_shift_mix(Worker& me, const Rows& rows, int64_t D, float* x, const float* delta, Norm norm, int64_t M,
                    const float* mix, float* before, float* normed, float* out) {
    const int64_t some = 16, blocks = (rows.T + some - 1) / some;
    me.parallel_for(blocks, [&](int64_t block) {
        for (int64_t t = block * some; t < std::min(rows.T, (block + 1) * some); t++) {
            float* row = x + t * D;
            if (delta != nullptr)
                for (int64_t d = 0; d < D; d++) row[d] += delta[t * D + d];
            layer_norm(row, D, norm, normed + t * D);
        }
    });
    me.wait();
    const bool many = rows.G > 1;         // else the rows of the one segment are shared
    me.parallel_for(many ? rows.G : blocks, [&](int64_t unit) {
        const int64_t s = many ? unit : 0;
        const int64_t from = many ? rows.start[s] : unit * some;
        const int64_t to = many ? rows.start[s + 1] : std::min(rows.T, (unit + 1) * some);
        for (int64_t t = from; t < to; t++) {
            const float* here = normed + t * D;
            const float* back = t == rows.start[s] ? before + rows.slot[s] * D : here - D;
            for (int64_t m = 0; m < M; m++) {
                float* at = out + (m * rows.T + t) * D;
                for (int64_t d = 0; d < D; d++) at[d] = here[d] + (back[d] - here[d]) * mix[m * D + d];
            }
        }
    });
    me.wait();
    me.parallel_for(1, [&](int64_t) {
        for (int64_t s = 0; s < rows.G; s++)
            std::memcpy(before + rows.slot[s] * D, normed + (rows.start[s + 1] - 1) * D, D * sizeof(float));
    });
}

struct TimeMix {
    const float *r, *k, *v, *w, *a, *g, *v_gate, *v_first;      // (T, D); the last two or null
    const float *k_k, *k_a, *r_k, *norm_weight, *norm_bias;     // (D)
};

// One segment's rows for one head. The state S[value][key] is read and written once a token:
//   S = S diag(w) + (S a) b' + v k',  y = S r,  a = -kk,  b = kk * rate
template <int SIZE>
void head(const TimeMix& m, int64_t D, int64_t size, int64_t h, int64_t from, int64_t to, float* S,
          float* out) {
    constexpr int64_t MOST = SIZE > 0 ? SIZE : 256;
    const int64_t N = SIZE > 0 ? SIZE : size;
    alignas(64) float w[MOST], a[MOST], b[MOST], k[MOST], v[MOST], y[MOST];
    for (int64_t t = from; t < to; t++) {
        const int64_t at = t * D + h * N, in = h * N;
        const float* r = m.r + at;
        float square = 0.0f, bonus = 0.0f;
        for (int64_t j = 0; j < N; j++) {
            const float key = m.k[at + j], rate = sigmoid(m.a[at + j]), unit = key * m.k_k[in + j];
            w[j] = exponential(DECAY * sigmoid(m.w[at + j]));
            k[j] = key * (1.0f + (rate - 1.0f) * m.k_a[in + j]);
            a[j] = -unit;
            b[j] = unit * rate;
            square += unit * unit;
            bonus += r[j] * k[j] * m.r_k[in + j];
        }
        const float scale = 1.0f / std::max(std::sqrt(square), UNIT_EPS);
        for (int64_t j = 0; j < N; j++) {
            a[j] *= scale;
            b[j] *= scale;
            v[j] = m.v[at + j];
        }
        if (m.v_gate != nullptr)
            for (int64_t j = 0; j < N; j++) v[j] += (m.v_first[at + j] - v[j]) * sigmoid(m.v_gate[at + j]);
        float mean = 0.0f, variance = 0.0f;
        for (int64_t i = 0; i < N; i++) {
            float* row = S + i * N;
            float removed = 0.0f, sum = 0.0f;
            for (int64_t j = 0; j < N; j++) removed += row[j] * a[j];
            for (int64_t j = 0; j < N; j++) {
                row[j] = row[j] * w[j] + removed * b[j] + v[i] * k[j];
                sum += row[j] * r[j];
            }
            y[i] = sum;
            mean += sum;
        }
        mean /= N;
        for (int64_t i = 0; i < N; i++) variance += (y[i] - mean) * (y[i] - mean);
        const float inverse = 1.0f / std::sqrt(variance / N + GROUP_NORM_EPS);
        for (int64_t i = 0; i < N; i++) {
            const float normed = (y[i] - mean) * inverse * m.norm_weight[in + i] + m.norm_bias[in + i];
            out[at + i] = (normed + bonus * v[i]) * m.g[at + i];
        }
    }
}

void time_mix(Worker& me, const Rows& rows, const TimeMix& m, int64_t D, int64_t N, float* wkv, float* out) {
    const int64_t H = D / N;
    me.parallel_for(rows.G * H, [&](int64_t unit) {
        const int64_t s = unit / H, h = unit % H, from = rows.start[s], to = rows.start[s + 1];
        float* S = wkv + (rows.slot[s] * H + h) * N * N;
        switch (N) {
            case 32: head<32>(m, D, N, h, from, to, S, out); break;
            case 64: head<64>(m, D, N, h, from, to, S, out); break;
            case 128: head<128>(m, D, N, h, from, to, S, out); break;
            default: head<0>(m, D, N, h, from, to, S, out);
        }
    });
    me.wait();
}

struct Layer {
    Norm att_norm, ffn_norm;
    const float *att_mix, *ffn_mix;       // (6, D) in the order r, w, k, v, a, g; (D)
    Matrix receptance, key, value, output, ffn_key, ffn_value;
    Matrix w1, w2, a1, a2, v1, v2, g1, g2;  // biases w0, a0, v0 with the second ones; v1 n = 0 for none
    const float *k_k, *k_a, *r_k, *head_norm_weight, *head_norm_bias;
};

struct Model {
    int64_t L, D, N, F;
    const Layer* layers;
    Norm out_norm;
    Matrix head;
};

}  // namespace

extern "C" {

int64_t panel_width() { return PANEL; }

int64_t has_dots() {
#if defined(DOTS)
    return 1;
#else
    return 0;
#endif
}

int64_t keeps_fp16() {
#if defined(__F16C__) && defined(__AVX__)
    return 1;
#else
    return 0;
#endif
}

// Floats of workspace that `forward` needs.
int64_t workspace(const Model* model, int64_t T, int64_t G) {
    int64_t rank = 0;
    for (int64_t l = 0; l < model->L; l++) {
        const Layer& y = model->layers[l];
        rank = std::max({rank, y.w1.n, y.a1.n, y.v1.n, y.g1.n});
    }
    const int64_t bytes = 3 * model->D + model->F;
    return T * (17 * model->D + 4 * rank + model->F + bytes / 4 + 4) + G * model->D + 64;
}

// Reads T rows into G slots. x: the rows' embeddings, (T, D), overwritten. att_x, ffn_x: (L, S, D);
// wkv: (L, S, H, N, N); all three updated in place in the named slots. logits: (G, V).
void forward(const Model* model, int64_t threads, int64_t T, int64_t G, const int64_t* start,
             const int64_t* slot, int64_t S, float* x, float* att_x, float* wkv, float* ffn_x,
             float* space, float* logits) {
    const Rows rows = {T, G, start, slot};
    const int64_t D = model->D, N = model->N, TD = T * D;
    float* mixed = space;                 // (6, T, D)
    float *normed = mixed + 6 * TD, *r = normed + TD, *k = r + TD, *v_first = k + TD;
    float *v_own = v_first + TD, *w = v_own + TD, *a = w + TD, *g = a + TD, *v_gate = g + TD;
    float *out = v_gate + TD, *delta = out + TD, *inner = delta + TD;
    float *scale = inner + T * model->F, *w_low = scale + 4 * T;
    uint8_t* bytes = (uint8_t*)(space + workspace(model, T, G)) - T * (3 * D + model->F);
    // What the large matrices multiply; each has room of its own as long as it is in use.
    const Input in_r = {mixed, bytes, scale}, in_k = {mixed + 2 * TD, bytes + TD, scale + T};
    const Input in_v = {mixed + 3 * TD, bytes + 2 * TD, scale + 2 * T};
    const Input in_out = {out, bytes, scale}, in_ffn = {mixed, bytes, scale};
    const Input in_inner = {inner, bytes + 3 * TD, scale + 3 * T};
    const std::unique_ptr<Phase[]> phases(new Phase[model->L * PHASES_OF_LAYER + PHASES_OF_END]);
    #pragma omp parallel num_threads(threads)
    {
        Worker me(phases.get());
        const float* pending = nullptr;
        for (int64_t l = 0; l < model->L; l++) {
            const Layer& y = model->layers[l];
            float* v = l == 0 ? v_first : v_own;
            float *a_low = w_low + T * y.w1.n, *g_low = a_low + T * y.a1.n, *v_low = g_low + T * y.g1.n;
            const bool gated = l > 0;
            norm_shift_mix(me, rows, D, x, pending, y.att_norm, 6, y.att_mix, att_x + l * S * D, normed, mixed);
            quantise_rows(me, y.receptance, T, in_r);
            quantise_rows(me, y.key, T, in_k);
            quantise_rows(me, y.value, T, in_v);
            gemm(me, y.w1, T, plain(mixed + TD), w_low, TANH);
            gemm(me, y.a1, T, plain(mixed + 4 * TD), a_low);
            gemm(me, y.g1, T, plain(mixed + 5 * TD), g_low, SIGMOID);
            if (gated) gemm(me, y.v1, T, plain(mixed + 3 * TD), v_low);
            me.wait();
            gemm(me, y.receptance, T, in_r, r);
            gemm(me, y.key, T, in_k, k);
            gemm(me, y.value, T, in_v, v);
            gemm(me, y.w2, T, plain(w_low), w);
            gemm(me, y.a2, T, plain(a_low), a);
            gemm(me, y.g2, T, plain(g_low), g);
            if (gated) gemm(me, y.v2, T, plain(v_low), v_gate);
            me.wait();
            const TimeMix mix = {r, k, v, w, a, g, gated ? v_gate : nullptr, v_first, y.k_k, y.k_a, y.r_k,
                                 y.head_norm_weight, y.head_norm_bias};
            time_mix(me, rows, mix, D, N, wkv + l * S * D * N, out);
            quantise_rows(me, y.output, T, in_out);
            me.wait();
            gemm(me, y.output, T, in_out, delta);
            me.wait();
            norm_shift_mix(me, rows, D, x, delta, y.ffn_norm, 1, y.ffn_mix, ffn_x + l * S * D, normed, mixed);
            quantise_rows(me, y.ffn_key, T, in_ffn);
            me.wait();
            gemm(me, y.ffn_key, T, in_ffn, inner, SQUARED_RELU);
            me.wait();
            quantise_rows(me, y.ffn_value, T, in_inner);
            me.wait();
            gemm(me, y.ffn_value, T, in_inner, delta);
            me.wait();
            pending = delta;
        }
        me.parallel_for(G, [&](int64_t s) {
            const int64_t t = start[s + 1] - 1;
            for (int64_t d = 0; d < D; d++) x[t * D + d] += delta[t * D + d];
            layer_norm(x + t * D, D, model->out_norm, mixed + s * D);
        });
        me.wait();
        quantise_rows(me, model->head, G, in_ffn);
        me.wait();
        gemm(me, model->head, G, in_ffn, logits);
    }
}

}  // extern "C"
